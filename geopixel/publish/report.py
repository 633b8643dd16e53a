"""report.html: one page to look around in a finished run, with everything in it: features over the imagery, what became of every tile, how
much was found of what, how long it took. Knows the run folder; asks no network, and its own policy lets it ask none."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment
from markupsafe import Markup
from shapely import Geometry

from geopixel.publish.backdrop import SCORE, STATE_COLOURS, Backdrop, colour, ground_text, share_text
from geopixel.storage import Folder
from geopixel.types import STATES, Scene, State, Tiles

REPORT = "report.html"
STATE_MEANINGS: dict[State, str] = {
    "ok": "something was found",
    "empty": "looked at, none of the prompts is there",
    "nodata": "no pixel was observed",
    "cloud": "only clouds were observed",
    "outside": "outside the area",
    "failed": "could not be read or computed: a hole in the map",
}


def store_report(folder: Folder, backdrop: Backdrop, *, name: str, run: Mapping[str, Any], area: Geometry, tiles: Tiles, scenes: Sequence[Scene]) -> None:
    """Writes report.html from features.parquet and coverage.parquet, which are there already.

    name: of the run. run: what run.json says, with the key finished. area: in the CRS of the backdrop. tiles: the plan, in its order.
    Nothing of a prompt, a reason or a name can become markup: texts are escaped, and the page's policy runs no script but its own two.
    """
    from bokeh.core.json_encoder import serialize_json  # Bokeh takes a second to load, which no worker that reads tiles should wait
    from bokeh.embed import json_item
    from bokeh.resources import Resources

    from geopixel.publish import figures

    prompts: list[str] = run["request"]["prompts"]
    features = gpd.read_parquet(BytesIO(folder.get("features.parquet")))
    coverage = pq.read_table(BytesIO(folder.get("coverage.parquet")), columns=["state", "reason"])
    page = figures.Page(backdrop)
    drawn, tolerance = figures.drawn_features(features, backdrop, tiles.grid.resolution)
    owners, scores, sizes = (features[column].to_numpy() for column in ("prompt", SCORE, "area_m2"))
    chart, layers = figures.draw_map(page, drawn, prompts, area)
    squares, edge = figures.draw_coverage(page, tiles, coverage["state"].to_pylist(), coverage["reason"].to_pylist(), area)
    drawings = {
        "map": chart,
        "scores": figures.draw_histogram("score: mean probability in a feature", scores, owners, prompts, np.linspace(0, 1, 26), "score"),
        "sizes": figures.draw_histogram("area of a feature, m\u00b2", sizes, owners, prompts, _decades(sizes), "size", log=True),
        "coverage": squares,
    }
    items = [serialize_json(json_item(drawing, target)) for target, drawing in drawings.items()]  # type: ignore[arg-type]
    data = f'{{"drawings": [{", ".join(items)}], "layers": {json.dumps(layers, separators=(",", ":"))}}}'
    scripts = [*Resources(mode="inline", components=["bokeh"]).js_raw, _template("report.js")]
    left, right, bottom, top = page.view
    ground = backdrop.square_metres(area)
    text = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_template("report.html.jinja"))
    html = text.render(
        name=name,
        ratio=round((right - left) / (top - bottom), 4),
        layers=_layers(features, prompts, ground),
        drawn=len(drawn),
        found=len(features),
        tolerance=f"{tolerance / backdrop.geobox.affine.a * backdrop.metres[0]:.2g}",
        states=[(state, STATE_COLOURS[state], STATE_MEANINGS[state], run["finished"]["tiles"][state]) for state in STATES],
        edge=edge,
        facts=_facts(run, ground, scenes),
        stages=sorted({stage for submission in run["submissions"] for stage in submission["seconds"]}, key=_stage),
        submissions=run["submissions"],
        cost=_cost(folder, run, ground),
        settings=run["request"],
        versions=run["versions"],
        data=Markup(data.replace("<", "\\u003c")),
        scripts=[Markup(script) for script in scripts],
        hashes=" ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts),
    )
    folder.put(REPORT, html.encode())


def _template(name: str) -> str:
    return files("geopixel.publish").joinpath(name).read_text(encoding="utf-8")


def _layers(features: gpd.GeoDataFrame, prompts: Sequence[str], ground: float) -> list[dict[str, Any]]:
    """What the table of prompts shows."""
    layers = []
    for index, prompt in enumerate(prompts):
        own = features[(features["prompt"] == prompt).to_numpy()]
        total = float(own["area_m2"].sum())
        layers.append(
            {
                "prompt": prompt,
                "colour": colour(index),
                "count": len(own),
                "area": ground_text(total),
                "share": share_text(total / ground),
                "median": ground_text(float(own["area_m2"].median())) if len(own) else "-",
                "score": f"{own[SCORE].mean():.2f}" if len(own) else "-",
            }
        )
    return layers


def _decades(sizes: np.ndarray) -> np.ndarray:
    """Bins for areas in m2: five a decade, whole decades."""
    seen = sizes[sizes > 0] if (sizes > 0).any() else np.array([1.0, 10.0])
    first, last = np.floor(np.log10(seen.min())), np.ceil(np.log10(seen.max()))
    last = max(last, first + 1)
    return np.logspace(first, last, round(5 * (last - first)) + 1)


def _facts(run: Mapping[str, Any], ground: float, scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """The line below the title."""
    days = sorted(scene.day for scene in scenes)
    sources = sum(len(scene.sources) for scene in scenes)
    return [
        ("mapped", ground_text(ground)),
        ("imagery", f"{', '.join(sorted({scene.collection for scene in scenes}))}, {sources:,} item{'s'[: sources != 1]}"),
        ("taken", days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"),
        ("model", run["request"]["model"]),
        ("pixels", f"{run['grid']['resolution']:g} units of {run['grid']['crs']}"),
    ]


def _stage(name: str) -> tuple[int, str]:
    """Stages in the order in which a run goes through them."""
    known = ("plan", "look", "mosaic", "publish")
    return known.index(name) if name in known else len(known), name


def _cost(folder: Folder, run: Mapping[str, Any], ground: float) -> list[tuple[str, str]]:
    """What the run took, and what the plan had said: time of devices and readers, and room."""
    submissions = run["submissions"]
    spent = {kind: sum(submission["worker_seconds"].get(kind, 0.0) for submission in submissions) for kind in ("predict", "read")}
    looked_at = sum(submission["tiles_looked_at"] for submission in submissions)
    waited = sum(sum(submission["seconds"].values()) for submission in submissions)
    kinds = sorted({kind for submission in submissions for kind in submission["computed_with"]})
    plan, device = run["plan"], "cuda" if any(kind.startswith("cuda") for kind in kinds) else "cpu"
    read = sum(submission["read_bytes"] for submission in submissions)
    rows = [
        ("from start to end", duration(waited)),
        ("the model at work, all devices together", f"{duration(spent['predict'])}; the plan said {duration(3600 * plan['device_hours'][device])} on {device}"),
        ("reading imagery, all workers together", f"{duration(spent['read'])}, {read / 1e6:,.1f} MB; the plan said {plan['read_bytes'] / 1e6:,.1f} MB"),
        ("computed with", ", ".join(kinds) or "-"),
    ]
    if looked_at and spent["predict"]:
        each = spent["predict"] / looked_at
        rows.append(("a tile, in the mean", f"{each:.2f} s of the model, {spent['read'] / looked_at:.2f} s of reading; {looked_at:,} looked at"))
        rows.append(("a square kilometre", f"{duration(spent['predict'] / ground * 1e6)} of the model"))
    if with_model := sum(submission["worker_seconds"].get("with_model", 0.0) for submission in submissions):
        rows.append(("the model's share of its workers' time", f"{spent['predict'] / with_model:.0%}"))
    stored = {path: folder.size(path) for path in ("masks.zarr", "predictions", "parts")}
    rows.append(("stored", ", ".join(f"{path} {size / 1e6:,.1f} MB" for path, size in stored.items())))
    return rows


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} s"
