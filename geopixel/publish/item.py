"""What a finished run is, as a STAC Item: where and when, from which items and by which model, and every file that others can open, with its
size, checksum, columns or bands. Knows the run folder as it stands; says nothing that it does not find there or in run.json."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pystac
import shapely
import zarr
from pyproj import CRS
from shapely import Geometry
from shapely.geometry import mapping

from geopixel.publish.backdrop import metres_per_unit
from geopixel.storage import Folder
from geopixel.types import HALO, Grid, Scene

ITEM = "item.json"
EXTENSIONS = {
    name: f"https://stac-extensions.github.io/{name}/v{version}/schema.json"
    for name, version in {"projection": "2.0.0", "raster": "2.0.0", "file": "2.1.0", "table": "1.2.0", "processing": "1.1.0", "mlm": "1.4.0"}.items()
}
PARQUET, HTML, PNG = "application/vnd.apache.parquet", "text/html", "image/png"
ASSETS = {
    "features.parquet": (PARQUET, ["data"], "Outlines of what was found, GeoParquet"),
    "captions.parquet": (PARQUET, ["data"], "What every tile shows, in words tied to the outlines, GeoParquet"),
    "coverage.parquet": (PARQUET, ["metadata"], "What became of every tile, GeoParquet"),
    "scenes.parquet": (PARQUET, ["metadata"], "The STAC items seen, STAC GeoParquet"),
    "plan.parquet": (PARQUET, ["metadata"], "The tiles planned, GeoParquet"),
    "report.html": (HTML, ["overview", "metadata"], "The map to look at, with figures: one page that needs no network"),
    "quicklook.png": (PNG, ["overview"], "The outlines over the imagery"),
}
"""Files of the run folder: media type, roles, title. Those that are there become assets."""
MASKS = "masks.zarr"
BUNDLED = "nano"
"""The model that is no folder and no hub id: it comes with the package."""


def store_item(folder: Folder, *, name: str, run: Mapping[str, Any], area: Geometry, grid: Grid, scenes: Sequence[Scene]) -> None:
    """Writes item.json, a STAC 1.1 Item of the files that are in the folder.

    name: id of the item. run: what run.json says, with the key finished. area: EPSG:4326, longitude first; cut at the antimeridian where it
    crosses it. Links derived_from lead to the items seen, where their catalog said where they are; all are listed by collection and id.
    """
    if not scenes:
        raise ValueError("an item comes from at least one scene, got none")
    days = sorted(datetime.fromisoformat(scene.day).replace(tzinfo=UTC) for scene in scenes)
    found: Mapping[str, int] = run["finished"]["features"]
    item = pystac.Item(
        id=name,
        geometry=mapping(area),
        bbox=_bbox(area),
        datetime=None,
        start_datetime=days[0],
        end_datetime=days[-1].replace(hour=23, minute=59, second=59),
        properties={
            "title": f"{', '.join(found)} in {', '.join(sorted({scene.collection for scene in scenes}))}",
            **_projection(CRS(grid.crs)),
            **_processing(run),
            **_model(run),
            "geopixel:resolution": grid.resolution,
            "geopixel:features": dict(found),
            "geopixel:tiles": dict(run["finished"]["tiles"]),
            "geopixel:sources": sorted({f"{scene.collection}/{source.item}" for scene in scenes for source in scene.sources}),
        },
        stac_extensions=list(EXTENSIONS.values()),
    )
    if gsd := [source.gsd for scene in scenes for source in scene.sources if source.gsd]:
        item.common_metadata.gsd = min(gsd)
    for key, asset in _assets(folder, run, grid):
        item.add_asset(key, asset)
    for href, title in sorted({(source.href, f"{scene.collection}/{source.item}") for scene in scenes for source in scene.sources if source.href}):
        item.add_link(pystac.Link(pystac.RelType.DERIVED_FROM, href, pystac.MediaType.GEOJSON, title))
    folder.put_json(ITEM, item.to_dict(include_self_link=False))


def _bbox(area: Geometry) -> list[float]:
    """West, south, east, north; west > east where the area was cut at the antimeridian (RFC 7946, section 5.2)."""
    west, south, east, north = area.bounds
    if (west, east) == (-180, 180):
        bounds = shapely.bounds(shapely.get_parts(area))
        eastern = bounds[:, 0] > 0
        if eastern.any() and (bounds[~eastern, 2] < 0).all():
            west, east = bounds[eastern, 0].min(), bounds[~eastern, 2].max()
    return [float(west), float(south), float(east), float(north)]


def _projection(crs: CRS) -> dict[str, Any]:
    authority = crs.to_authority()
    return {"proj:code": ":".join(authority)} if authority else {"proj:code": None, "proj:wkt2": crs.to_wkt()}


def _processing(run: Mapping[str, Any]) -> dict[str, Any]:
    request = run["request"]
    prompts = ", ".join(f'"{prompt}"' for prompt in request["prompts"])
    return {
        "processing:level": "L4",
        "processing:lineage": (
            f"GeoPixel ({request['model']}) was asked for {prompts} tile by tile; masks blended, cut at a probability of {request['threshold']:g}, "
            "traced along pixel edges."
        ),
        "processing:software": dict(run["versions"]),
    }


def _model(run: Mapping[str, Any]) -> dict[str, Any]:
    """The MLM extension: what the model is and how it was asked. Sizes of -1 differ from tile to tile."""
    request, image = run["request"], ["batch", "height", "width", "channel"]
    tasks = ["semantic-segmentation"] + (["image-captioning"] if request.get("describe") else [])
    masks = {"shape": [-1, -1, -1], "dim_order": ["prompt", "height", "width"], "data_type": "float32"}
    properties: dict[str, Any] = {
        "mlm:name": _model_name(request["model"]),
        "mlm:architecture": "GeoPixel",
        "mlm:tasks": tasks,
        "mlm:framework": "PyTorch",
        "mlm:framework_version": run["versions"]["torch"],
        "mlm:input": [{"name": "tile in 8-bit colours", "bands": [], "input": {"shape": [-1, -1, -1, 3], "dim_order": image, "data_type": "uint8"}}],
        "mlm:output": [{"name": "mask logits", "tasks": ["semantic-segmentation"], "result": masks}],
        "mlm:hyperparameters": {"prompts": list(request["prompts"]), "threshold": request["threshold"], "halo": HALO},
    }
    if kinds := sorted({kind for submission in run["submissions"] for kind in submission["computed_with"]}):
        properties["mlm:accelerator_summary"] = ", ".join(kinds)
    return properties


def _model_name(model: str) -> str:
    """As mlm:name allows it: letters, digits, points, dashes and spaces."""
    last = re.sub(r"[^a-zA-Z0-9_.\-\s]", "-", model.rstrip("/").rsplit("/", 1)[-1]).strip("-_. ")
    return last if last.startswith("GeoPixel") else f"GeoPixel {last}"


def _model_href(run: Mapping[str, Any]) -> str:
    """Where the weights are: part of the package, a folder, or the hub's page."""
    model = run["request"]["model"]
    if model == BUNDLED:
        return f"pkg:pypi/geopixel-ray@{run['versions']['geopixel-ray']}#geopixel/model/weights/{BUNDLED}"
    if Path(model).expanduser().is_dir():
        return Path(model).expanduser().resolve().as_uri()
    return f"https://huggingface.co/{model}"


def _assets(folder: Folder, run: Mapping[str, Any], grid: Grid) -> Iterator[tuple[str, pystac.Asset]]:
    if folder.exists(f"{MASKS}/zarr.json"):
        title = "Mask and confidence of every prompt, state of every pixel, with overviews"
        yield MASKS, pystac.Asset(f"./{MASKS}", title, media_type="application/vnd.zarr; version=3", roles=["data"], extra_fields=_raster(folder, grid))
    for path, (media_type, roles, title) in ASSETS.items():
        if folder.exists(path):
            fields = _file(folder, path) | (_table(folder.get(path)) if media_type == PARQUET else {})
            yield path, pystac.Asset(f"./{path}", title, media_type=media_type, roles=roles, extra_fields=fields)
    for path in folder.list("cog"):
        prompt = run["request"]["prompts"][int(path.removeprefix("cog/").partition("-")[0])]
        title, fields = f"Mask of {prompt}", _file(folder, path) | {"bands": [{"name": prompt, "data_type": "uint8"}]}
        yield path, pystac.Asset(f"./{path}", title, media_type=pystac.MediaType.COG, roles=["data"], extra_fields=fields)
    weights = {"mlm:artifact_type": "torch.nn.Module.state_dict"}
    yield "model", pystac.Asset(_model_href(run), "Weights of the model", roles=["mlm:model"], extra_fields=weights)


def _raster(folder: Folder, grid: Grid) -> dict[str, Any]:
    """Place and bands of the Zarr group, as its own attributes have them."""
    root: Any = zarr.open_group(folder.zarr(MASKS), mode="r")
    said = dict(root.attrs) | dict(root["mask"].attrs)
    fields = {name: said[name] for name in ("proj:code", "proj:wkt2") if name in said}
    fields |= {"proj:shape": said["spatial:shape"], "proj:transform": said["spatial:transform"], "proj:bbox": said["spatial:bbox"]}
    left, bottom, right, top = said["spatial:bbox"]
    size = metres_per_unit(grid.crs, (left + right) / 2, (bottom + top) / 2, grid.resolution)
    prompts = [str(prompt) for prompt in root["prompt"][:]]
    bands = []
    for name, array in sorted(root.arrays()):
        dimensions = array.metadata.dimension_names or ()
        if tuple(dimensions[-2:]) == ("y", "x"):
            band = {"data_type": str(array.dtype), "description": array.attrs.get("long_name", name), "raster:spatial_resolution": round(max(size), 6)}
            band |= {ours: array.attrs[theirs] for ours, theirs in (("nodata", "_FillValue"), ("raster:scale", "scale_factor")) if theirs in array.attrs}
            bands += [{"name": f"{name}/{prompt}", **band} for prompt in prompts] if "prompt" in dimensions else [{"name": name, **band}]
    return fields | {"bands": bands}


def _file(folder: Folder, path: str) -> dict[str, Any]:
    """Size and checksum, as a multihash: SHA2-256 (0x12), 32 bytes (0x20)."""
    digest, size = hashlib.sha256(), 0
    for part in folder.parts(path):
        digest.update(part)
        size += len(part)
    return {"file:size": size, "file:checksum": f"1220{digest.hexdigest()}"}


def _table(data: bytes) -> dict[str, Any]:
    """Columns and rows of a GeoParquet file, and the CRS of its geometry."""
    file = pq.ParquetFile(BytesIO(data))
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    primary = geo["primary_column"]
    crs = geo["columns"][primary].get("crs", "OGC:CRS84")  # GeoParquet's default
    return {
        "table:columns": [{"name": field.name, "type": str(field.type)} for field in file.schema_arrow],
        "table:primary_geometry": primary,
        "table:row_count": file.metadata.num_rows,
        **_projection(CRS.from_user_input(crs)),
    }
