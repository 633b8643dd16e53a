"""The page in a real browser, opened from the disk with no network: it draws, hides and tells; no text of a run becomes markup; and what it draws
of a large run is the rule that it states."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from PIL import Image

from geopixel.pipeline import load_run
from geopixel.publish import figures, read_backdrop
from geopixel.publish.report import REPORT, duration, store_report
from geopixel.storage import Folder
from geopixel.types import Grid, Scene, Tile, Tiles
from tests.publish.conftest import AREA, FAILED_TILE, GRID, HOUSE, YARD, features_of, make_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ATTACK = "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(BROWSERS)} is on the PATH (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: sync_api.Browser) -> Iterator[Callable[[Path], sync_api.Page]]:
    """Opens a page and waits until it is drawn. In the end nothing may have gone wrong in it, nor asked for anything but itself."""
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    said: list[str] = []
    asked: list[str] = []

    def visit(path: Path) -> sync_api.Page:
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn]", timeout=60_000)
        page.wait_for_function("[...Bokeh.index].every(view => view.is_idle ?? true)", timeout=60_000)
        return page

    yield visit
    context.close()
    assert said == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {url for url in asked if url.endswith(f"/{REPORT}")}


def on_screen(page: sync_api.Page, east: float, north: float) -> tuple[float, float]:
    """Where the map shows a point of the page's plane, in pixels of the window."""
    return tuple(
        page.evaluate(
            """([east, north]) => {
                const view = [...Bokeh.index].find(view => document.querySelector("#map").contains(view.el))
                const box = view.el.getBoundingClientRect()
                return [box.x + view.frame.x_scale.compute(east), box.y + view.frame.y_scale.compute(north)]
            }""",
            [east, north],
        )
    )


def hover(page: sync_api.Page, east: float, north: float) -> str:
    """What the tooltip says there."""
    x, y = on_screen(page, east, north)
    page.mouse.move(x - 3, y - 3)
    page.mouse.move(x, y)
    tip = page.locator(".bk-tooltip-row-value").first
    tip.wait_for(state="visible", timeout=20_000)
    return " | ".join(page.locator(".bk-tooltip-row-value").all_inner_texts())


def settled(page: sync_api.Page) -> np.ndarray:
    """A picture of the map, (height, width, 3), once two in a row are equal."""
    last = b""
    for _ in range(40):
        now = page.locator("#map").screenshot()
        if now == last:
            return np.asarray(Image.open(BytesIO(now)).convert("RGB")).astype(int)
        last = now
        page.wait_for_timeout(150)
    raise AssertionError("the map does not come to rest")


def changed(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the pixels that differ visibly."""
    return float((np.abs(one - other).max(axis=-1) > 20).mean())


def test_the_page_of_a_run(serial: Path, visit: Callable[[Path], sync_api.Page]) -> None:
    page = visit(serial / REPORT)
    page.mouse.move(0, 0)
    whole = settled(page)
    box = page.get_by_label("building")
    box.uncheck()
    without = settled(page)
    assert changed(without, whole) > 0.005, "unchecking a prompt hides its layer"
    shown = page.evaluate("['layer-0', 'score-0', 'size-0', 'layer-1'].map(name => Bokeh.documents.map(d => d.get_model_by_name(name)).find(m => m).visible)")
    assert shown == [False, False, False, True]
    box.check()
    assert changed(settled(page), whole) < 0.0005

    features = gpd.read_parquet(serial / "features.parquet")
    run = load_run(Folder(str(serial)))
    backdrop = read_backdrop(run.scenes, run.grid, run.area)
    largest = features[features["prompt"] == "building"].nlargest(1, "area_m2").to_crs(run.grid.crs).iloc[0]
    point = np.array([largest.geometry.representative_point().coords[0]])
    said = hover(page, *figures.Page(backdrop).place(point)[0])
    assert "building" in said
    assert f"{largest['area_m2']:,.0f} m\u00b2" in said
    rows = dict(re.findall(r"(building|water)\s+([\d,]+)", page.locator("#layers").inner_text()))
    assert {prompt: int(count.replace(",", "")) for prompt, count in rows.items()} == features["prompt"].value_counts().to_dict()
    assert page.locator("#rule").count() == 0, "all of a small run is drawn"

    page.mouse.wheel(0, -600)
    assert changed(settled(page), whole) > 0.2, "the wheel zooms"


def test_no_text_becomes_markup(tmp_path: Path, scene: Scene, visit: Callable[[Path], sync_api.Page]) -> None:
    prompts = [ATTACK, "</script><script>window.hacked=2</script>"]
    features = features_of([HOUSE, YARD], prompts, id=["' onload='", "&lt;b&gt;"])
    made = make_run(tmp_path / "run", features, prompts, reason=f"cannot read {ATTACK}")
    backdrop = read_backdrop([scene], GRID, AREA)
    store_report(made.folder, backdrop, name=f"{ATTACK} & co", run=made.run, area=AREA, tiles=made.tiles, scenes=[scene])
    page = visit(tmp_path / "run" / REPORT)
    assert page.title() == f"{ATTACK} & co"
    place = figures.Page(backdrop).place
    assert ATTACK in hover(page, *place(np.array(HOUSE.centroid.coords))[0])
    page.mouse.move(0, 0)
    page.locator("#coverage").scroll_into_view_if_needed()
    assert page.get_by_label(ATTACK).is_checked()
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.querySelectorAll('img, script').length") == 4, "the data, Bokeh's two and the page's own"


def test_a_script_that_got_in_would_not_run(tmp_path: Path, scene: Scene, browser: sync_api.Browser) -> None:
    made = make_run(tmp_path / "run", features_of([HOUSE], ["house"]), ["house"])
    store_report(made.folder, read_backdrop([scene], GRID, AREA), name="run", run=made.run, area=AREA, tiles=made.tiles, scenes=[scene])
    path = tmp_path / "run" / REPORT
    path.write_text(path.read_text().replace("<header>", f"<header>{ATTACK}<img src='https://elsewhere.test/x.png'>"))
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=60_000)
    assert page.evaluate("window.hacked") is None
    page.close()


def test_a_failed_tile_is_told_on_the_page(tmp_path: Path, scene: Scene) -> None:
    made = make_run(tmp_path / "run", features_of([], []), ["house"], reason="cannot read gone.tif")
    store_report(made.folder, read_backdrop([scene], GRID, AREA), name="run", run=made.run, area=AREA, tiles=made.tiles, scenes=[scene])
    text = (tmp_path / "run" / REPORT).read_text()
    assert f"{FAILED_TILE.id}: failed, cannot read gone.tif" in text
    assert "The map has holes" in text


def test_of_many_features_the_largest_of_every_prompt_are_drawn(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    corners = rng.uniform(AREA.bounds[:2], AREA.bounds[2:], (200, 2))
    shapes = list(shapely.box(*corners.T, *(corners + rng.uniform(1, 60, (200, 1))).T))
    prompts = ["tree"] * 150 + ["vehicle"] * 50
    features = features_of(shapes, prompts)
    backdrop = read_backdrop([scene], GRID, AREA)
    monkeypatch.setattr(figures, "FEATURES_DRAWN", 40)
    drawn, tolerance = figures.drawn_features(features, backdrop, GRID.resolution)
    assert tolerance == GRID.resolution / 2
    for prompt in ("tree", "vehicle"):
        ours, all_of_it = drawn[drawn["prompt"] == prompt], features[features["prompt"] == prompt]
        assert len(ours) == 20
        assert ours["area_m2"].min() >= all_of_it["area_m2"].nlargest(20).min()
    monkeypatch.setattr(figures, "VERTICES_DRAWN", 50)
    fewer, coarser = figures.drawn_features(features, backdrop, GRID.resolution)
    assert coarser == backdrop.geobox.affine.a / 2
    assert 0 < shapely.get_num_coordinates(fewer.geometry.to_numpy()).sum() <= 50
    assert set(fewer["prompt"]) == {"tree", "vehicle"}


@pytest.mark.parametrize("limit", [4, 10, 1000])
def test_squares_stand_for_every_tile_once(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "SQUARES_DRAWN", limit)
    grid = Grid("EPSG:3857", 1.0)
    tiles = Tiles.of([Tile(grid, 512, column, row) for column in range(-3, 5) for row in range(-2, 3)] + [Tile(grid, 1024, 4, 4)])
    states = ["empty"] * len(tiles)
    states[7] = "failed"
    squares, edge = figures.coverage_squares(tiles, states, [""] * len(tiles))  # type: ignore[arg-type]
    counts = [int(found[1]) if (found := re.match(r"(\d+) tiles: ", text)) else 1 for text in squares["text"]]
    assert sum(counts) == len(tiles)
    assert len(squares) <= limit
    assert edge == 0 if limit >= len(tiles) else edge > 512
    assert (squares["state"] == "failed").sum() == 1
    x, y = tiles[7].left, tiles[7].top
    owner = squares[squares["state"] == "failed"].iloc[0]
    assert owner["left"] <= x < owner["left"] + owner["size"]
    assert owner["top"] <= y < owner["top"] + owner["size"]


def test_an_empty_run_and_a_strip_have_a_page(tmp_path: Path, scene: Scene, visit: Callable[[Path], sync_api.Page]) -> None:
    made = make_run(tmp_path / "run", features_of([], []), ["house"])
    strip = shapely.box(AREA.bounds[0], AREA.bounds[1], AREA.bounds[0] + 10, AREA.bounds[3])
    store_report(made.folder, read_backdrop([scene], GRID, strip), name="run", run=made.run, area=strip, tiles=made.tiles, scenes=[scene])
    page = visit(tmp_path / "run" / REPORT)
    box = page.locator("#map").bounding_box()
    assert box is not None
    assert box["height"] / box["width"] == pytest.approx(figures.WIDEST, rel=0.02)


def test_durations_in_words() -> None:
    assert [duration(seconds) for seconds in (0.25, 90, 600, 7200)] == ["0.2 s", "90.0 s", "10.0 min", "2.0 h"]
