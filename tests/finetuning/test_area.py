"""Chips of an area: where they lie, which part they go to, and what is drawn into them; the oracle is the class raster of rendered scenes."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.features import shapes

from geopixel.demo import CLASSES
from geopixel.finetuning import cut_area, plan_chips, read_published
from geopixel.finetuning.area import BLOCKS, PARTS
from geopixel.labels import decode_mask
from geopixel.types import Grid

GRID = Grid("EPSG:32645", 0.5)


@settings(max_examples=30)
@given(st.integers(4, 30), st.integers(4, 30), st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.5]))
def test_no_block_of_ground_is_in_both_parts(wide: int, high: int, seed: int, share: float) -> None:
    """Each chip is in one part, whole blocks of neighbours go together, and the parts do not overlap on the ground."""
    edge, rng = 64 * GRID.resolution, np.random.default_rng(seed)
    known = shapely.box(-3.3, -2.1, wide * edge, high * edge)
    points = rng.random((max(40, wide * high // 3), 2)) * (wide * edge, high * edge)
    polygons = shapely.buffer(shapely.points(points), 3, quad_segs=2)
    chips = plan_chips(GRID, known, polygons, size=64, share=share, seed=seed)
    assert len({(chip.column, chip.row) for chip in chips}) == len(chips)
    ground = {part: shapely.union_all([chip.ground for chip in chips if chip.part == part]) for part in PARTS}
    assert ground["train"].intersection(ground["validation"]).area == 0
    assert all(known.contains(chip.ground) for chip in chips)
    tree = shapely.STRtree(polygons)
    for chip in chips:
        assert chip.labelled == bool(len(tree.query(chip.ground, predicate="intersects")))
    for part in PARTS:
        labelled = [chip.labelled for chip in chips if chip.part == part]
        assert labelled.count(False) <= labelled.count(True)
    held = sum(chip.labelled for chip in chips if chip.part == "validation") / sum(chip.labelled for chip in chips)
    assert (held > 0) == (share > 0)
    assert held <= share + 0.35
    block = max(1, round(np.sqrt(wide * high / BLOCKS)))
    parts: dict[tuple[int, int], set[str]] = {}
    for chip in chips:
        parts.setdefault((chip.column // block, chip.row // block), set()).add(chip.part)
    assert all(len(found) == 1 for found in parts.values())


@pytest.mark.parametrize(
    ("known", "share", "said"),
    [
        (shapely.Polygon(), 0.2, "no ground is in the area and in the window"),
        (shapely.box(0, 0, 20, 20), 0.2, "no chip of 64 pixels .* fits into the area"),
        (shapely.box(1000, 0, 1100, 100), 0.2, "no label lies on the 6 chips"),
        (shapely.box(0, 0, 33, 33), 0.2, "too few to hold one back"),
        (shapely.box(0, 0, 1e6, 1e6), 0.2, "more than 4,000,000"),
    ],
)
def test_areas_that_make_no_data_are_refused(known: shapely.Geometry, share: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan_chips(GRID, known, np.array([shapely.box(1, 1, 5, 5)]), size=64, share=share, seed=0)


@pytest.fixture(scope="module")
def raster(catalog: Path) -> Path:
    """The class codes of the rendered scene with the most buildings."""

    def buildings(path: Path) -> int:
        with rasterio.open(path) as source:
            return int((source.read(1) == CLASSES["building"]).sum())

    return max(catalog.parent.rglob("truth.tif"), key=buildings)


@pytest.fixture(scope="module")
def labels(raster: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """buildings.parquet, outlines along pixels, and window.geojson, where they are complete."""
    with rasterio.open(raster) as source:
        codes = source.read(1)
        found = shapes(codes, codes == CLASSES["building"], connectivity=4, transform=source.transform)
        outlines = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(outline) for outline, _ in found], crs=source.crs)
        window = gpd.GeoDataFrame(geometry=[shapely.box(*source.bounds)], crs=source.crs)
    folder = tmp_path_factory.mktemp("labels")
    outlines.to_parquet(folder / "buildings.parquet")
    window.to_file(folder / "window.geojson")
    return folder


def test_chips_of_rendered_scenes_show_what_is_there(catalog: Path, raster: Path, labels: Path, tmp_path: Path) -> None:
    area = gpd.read_file(labels / "window.geojson").to_crs("EPSG:4326").geometry[0].buffer(0.001)
    options = {"window": labels / "window.geojson", "size": 128, "share": 0.25}
    cut_area(tmp_path / "data", str(catalog), area, labels / "buildings.parquet", "building", **options)  # type: ignore[arg-type]
    entries = {part: json.loads((tmp_path / "data" / f"{part}.json").read_text()) for part in PARTS}
    ids = {part: {entry["id"] for entry in found} for part, found in entries.items()}
    assert ids["train"]
    assert ids["validation"]
    assert not ids["train"] & ids["validation"]
    table = gpd.read_parquet(tmp_path / "data" / "chips.parquet")
    assert set(table["id"]) == ids["train"] | ids["validation"]
    with rasterio.open(raster) as source:
        codes, (left, _, _, top), gsd = source.read(1), source.bounds, source.res[0]
    pictures = 0
    for entry in entries["train"]:
        column, row = (int(number) * 128 for number in entry["id"].split("_"))
        x, y = column - round(left / gsd), row - round(-top / gsd)
        expected = codes[y : y + 128, x : x + 128] == CLASSES["building"]
        found = decode_mask(entry["segmentation"][0], 128, 128) if entry["segmentation"] else np.zeros((128, 128), bool)
        assert expected.shape == (128, 128)
        np.testing.assert_array_equal(found, expected)
        pictures += np.asarray(Image.open(tmp_path / "data" / entry["image"])).std() > 1
    assert pictures == len(entries["train"])
    lessons = read_published(tmp_path / "data" / "train.json")
    assert [len(lesson.masks()) for lesson in lessons] == [len(entry["segmentation"]) for entry in entries["train"]]
    assert not (tmp_path / "data.part").exists()
