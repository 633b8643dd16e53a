"""Laws: areas are those of the ground; what is dropped and what is kept add up; equal input gives equal bytes; nothing found is still a file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from geopandas.testing import assert_geodataframe_equal

from geopixel.features import FEATURES, ROWS_PER_GROUP, SCHEMA, build_features, load_parts, parts_states, store_features, store_parts
from geopixel.mosaic import CONFIDENCE_LEVELS
from geopixel.polygonize import PARTS, stitch, trace_block
from geopixel.storage import Folder
from geopixel.types import Block, Grid, Scene

GRID = Grid("EPSG:32645", 0.5)
PROMPTS = ["building", "swimming pool"]
SCENES = [Scene("naip", "2021-07-02", ()), Scene("naip", "2019-05-30", ())]
LEFT, TOP = 2 * 331_000, -2 * 3_050_000  # near the middle of the zone's west


def noise(share: float = 0.6, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.random((2, size, size)) < share).astype(np.uint8), rng.integers(0, CONFIDENCE_LEVELS + 1, (2, size, size), np.uint8)


def build(mask: np.ndarray, levels: np.ndarray, grid: Grid = GRID, min_area: float = 0, left: int = LEFT) -> tuple[gpd.GeoDataFrame, dict[str, int]]:
    objects = stitch(trace_block(mask, levels, left=left, top=TOP))
    return build_features(objects, grid, PROMPTS, SCENES, min_area=min_area)


def test_areas_are_those_of_the_ground() -> None:
    mask, levels = noise()
    mask[0, 10:30, 10:30] = 1
    mask[0, 15:20, 15:20] = 0  # a hole
    features, dropped = build(mask, levels)
    assert dropped == dict.fromkeys(PROMPTS, 0)
    # Everything lies within 60 m: one scale fits all, and at 331 km east of a UTM zone with k0 = 0.9996 it is below one.
    scale = features["area_m2"] / (features["pixels"] * GRID.resolution**2)
    np.testing.assert_allclose(scale, scale.median(), rtol=5e-5)  # geodesic areas are good to about 1e-5 m2
    assert scale.median() == pytest.approx(1 / (0.9996 * (1 + (169_000 / 6_378_000) ** 2 / 2)) ** 2, rel=2e-5)
    np.testing.assert_allclose(features.area, features["pixels"] * GRID.resolution**2)
    np.testing.assert_allclose(features["perimeter_m"] / features.geometry.map(lambda polygon: shapely.Polygon(polygon.exterior).length), scale**0.5, rtol=5e-5)


def test_features_cover_the_mask_pixel_by_pixel() -> None:
    mask, levels = noise()
    features, _ = build(mask, levels)
    assert features.crs == GRID.crs
    assert features.is_valid.all()
    assert features.geometry.map(lambda polygon: polygon.exterior.is_ccw).all()
    for index, prompt in enumerate(PROMPTS):
        found = features[features["prompt"] == prompt]
        rows, columns = np.nonzero(mask[index])
        centres = shapely.points((LEFT + columns + 0.5) * 0.5, -(TOP + rows + 0.5) * 0.5)
        tree = shapely.STRtree(found.geometry.to_numpy())
        pixel, feature = tree.query(centres, predicate="within")
        assert pixel.tolist() == list(range(len(centres)))
        np.testing.assert_array_equal(np.bincount(feature, minlength=len(found)), found["pixels"])
        mean = np.bincount(feature, weights=levels[index, rows, columns]) / np.bincount(feature) / CONFIDENCE_LEVELS
        np.testing.assert_allclose(mean, found["confidence"])


def test_dropped_and_kept_pixels_add_up() -> None:
    mask, levels = noise(0.5)
    every, _ = build(mask, levels)
    features, dropped = build(mask, levels, min_area=2)
    assert features["area_m2"].min() >= 2
    assert len(features) == (every["area_m2"] >= 2).sum()
    assert 0 < len(features) < len(every)
    for index, prompt in enumerate(PROMPTS):
        assert features.loc[features["prompt"] == prompt, "pixels"].sum() + dropped[prompt] == mask[index].sum()
    with pytest.raises(ValueError, match="-1"):
        build(mask, levels, min_area=-1)


def test_ids_are_unique_and_the_same_in_another_run() -> None:
    mask, levels = noise()
    features, _ = build(mask, levels)
    assert features["feature_id"].is_unique
    wider = np.pad(mask, ((0, 0), (0, 0), (10, 10)))
    again, _ = build(wider, np.pad(levels, ((0, 0), (0, 0), (10, 10))), left=LEFT - 10)
    assert again["feature_id"].tolist() == features["feature_id"].tolist()
    elsewhere, _ = build(mask, levels, Grid("EPSG:32644", 0.5))
    assert set(elsewhere["feature_id"]).isdisjoint(features["feature_id"])


@pytest.mark.parametrize("share", [0, 0.6], ids=["nothing found", "noise"])
def test_geoparquet_round_trip(tmp_path: Path, share: float) -> None:
    folder = Folder(str(tmp_path))
    features, _ = build(*noise(share))
    store_features(folder, features)
    stored = folder.get(FEATURES)
    loaded = gpd.read_parquet(BytesIO(stored))
    assert loaded.crs == GRID.crs
    assert {name: str(kind) for name, kind in loaded.dtypes.items()} == {**SCHEMA, "geometry": "geometry"}
    assert_geodataframe_equal(loaded, features)
    store_features(folder, build(*noise(share))[0])
    assert folder.get(FEATURES) == stored


def test_a_box_reads_few_row_groups(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    mask = (np.indices((150, 150)).sum(0) % 2)[None].repeat(2, 0).astype(np.uint8)
    features, _ = build(mask, mask)
    store_features(folder, features)
    metadata = pq.ParquetFile(tmp_path / FEATURES).metadata
    assert metadata.num_row_groups == -(-len(features) // ROWS_PER_GROUP) == 3
    west, north = LEFT * 0.5, -TOP * 0.5
    box = (west + 1, north - 11, west + 11, north - 1)
    columns = [metadata.row_group(0).column(index).path_in_schema for index in range(metadata.num_columns)]
    low, high = columns.index("bbox.xmin"), columns.index("bbox.xmax")
    bottom, top = columns.index("bbox.ymin"), columns.index("bbox.ymax")
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    touched = [
        group
        for group in groups
        if group.column(low).statistics.min <= box[2]
        and group.column(high).statistics.max >= box[0]
        and group.column(bottom).statistics.min <= box[3]
        and group.column(top).statistics.max >= box[1]
    ]
    assert len(touched) == 1
    assert len(gpd.read_parquet(tmp_path / FEATURES, bbox=box)) == len(features.cx[box[0] : box[2], box[1] : box[3]])


def test_parts_keep_what_they_were_made_from(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    one, other = Block(GRID, -3, 7), Block(GRID, 0, 0)
    assert parts_states(folder, one) is None
    mask, levels = noise(size=16)
    parts = trace_block(mask, levels, left=one.left, top=one.top)
    store_parts(folder, one, parts, "512_1_2 ok, 512_1_3 failed")
    store_parts(folder, other, PARTS.empty_table(), "512_9_9 nodata")
    assert parts_states(folder, one) == "512_1_2 ok, 512_1_3 failed"
    assert load_parts(folder, [one, other]).equals(parts)
    with pytest.raises(FileNotFoundError):
        load_parts(folder, [Block(GRID, 5, 5)])
    stored = folder.list("parts")
    before = [folder.get(path) for path in stored]
    store_parts(folder, one, pa.Table.from_batches(parts.to_batches()), "512_1_2 ok, 512_1_3 failed")
    assert [folder.get(path) for path in stored] == before
