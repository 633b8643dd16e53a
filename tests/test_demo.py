"""Rendered scenes are repeatable, varied and true to their own geometry; their catalog opens in the field's tools."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import geopandas as gpd
import numpy as np
import pystac
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.warp import transform_geom
from scipy import ndimage
from shapely import union_all
from shapely.geometry import shape

from geopixel.demo import CLASSES, DEMO_SEEDS, TRAINING_SEEDS, render_scene, write_catalog
from geopixel.demo.catalog import NODATA, TRUTH_NODATA
from geopixel.demo.layout import plan_layout
from geopixel.demo.light import cast_shadow, crowns

SEEDS, SIZE, GSD = (1_000_002, 1_000_008), 640, 0.5
OVERLAP = 40
"""A sixteenth of SIZE."""


def test_demo_seeds_are_not_training_seeds():
    assert set(TRAINING_SEEDS).isdisjoint(DEMO_SEEDS)
    assert min(DEMO_SEEDS) >= 1_000_000


@pytest.mark.parametrize("gsd", [0.3, 1.0])
def test_equal_arguments_give_equal_pixels_on_any_thread(gsd):
    with ThreadPoolExecutor(2) as pool:
        first, again, other = pool.map(lambda seed: render_scene(seed, 256, gsd), (5, 5, 6))
    assert np.array_equal(first.rgb, again.rgb)
    assert np.array_equal(first.truth, again.truth)
    assert not np.array_equal(first.rgb, other.rgb)
    assert first.rgb.shape == (256, 256, 3)
    assert first.truth.shape == (256, 256)
    assert first.rgb.dtype == first.truth.dtype == np.uint8
    assert first.rgb.min() > NODATA
    assert first.truth.max() <= max(CLASSES.values())


@pytest.mark.parametrize("arguments", [(-1,), (0, 32), (0, 256, 0.0), (0, 256, 5.0)])
def test_refuses_by_name(arguments):
    with pytest.raises(ValueError, match=f"got seed {arguments[0]}"):
        render_scene(*arguments)


def test_the_same_ground_at_twice_the_gsd_is_the_same_truth():
    fine, coarse = render_scene(SEEDS[1], 1024, 0.5).truth, render_scene(SEEDS[1], 512, 1.0).truth
    for name in ("building", "road", "water"):
        a, b = fine[::2, ::2] == CLASSES[name], coarse == CLASSES[name]
        assert (a & b).sum() > 0.75 * (a | b).sum(), name


def test_truth_lies_where_the_layout_says():
    seed, size, gsd = SEEDS[1], 1024, 0.5
    truth, layout = render_scene(seed, size, gsd).truth, plan_layout(np.random.default_rng(seed), size * gsd)

    def share(points: np.ndarray, *names: str) -> float:
        columns, rows = np.floor(points[layout.inside(points)] / gsd).astype(int).T
        return float(np.isin(truth[rows, columns], [CLASSES[name] for name in names]).mean())

    assert len(layout.buildings) > 100
    assert len(layout.trees) > 100
    assert share(np.array([building.parts[0][0] for building in layout.buildings]), "building", "tree") == 1
    assert share(np.concatenate([road.line for road in layout.roads]), "road", "tree", "vehicle", "building") > 0.97
    assert share(np.concatenate([road.line for road in layout.roads]), "road") > 0.8
    assert share(layout.trees[:, :2], "tree") > 0.99
    assert share(layout.vehicles[:, :2], "vehicle", "tree") > 0.95
    assert max(half.max() for building in layout.buildings for _, half in building.parts) <= 20


def test_sizes_follow_metres():
    truth = render_scene(SEEDS[1], 1600, 0.2).truth
    labels, count = ndimage.label(truth == CLASSES["vehicle"])
    areas = np.bincount(labels.ravel())[1:] * 0.2**2
    assert count >= 10
    assert 7 < np.median(areas) < 10.5


def test_colours_tell_the_classes():
    """Over several scenes: water is dark and even, trees are green and darker than the open, roofs differ from one another."""
    pixels: dict[str, list[np.ndarray]] = {name: [] for name in ("ground", *CLASSES)}
    for seed in range(10):
        scene = render_scene(seed, 384, 1.0)
        for name, code in {"ground": 0, **CLASSES}.items():
            pixels[name].append(scene.rgb[scene.truth == code].astype(float))
    joined = {name: np.concatenate(parts) for name, parts in pixels.items()}
    mean = {name: values.mean() for name, values in joined.items()}
    green = {name: (2 * values[:, 1] - values[:, 0] - values[:, 2]).mean() for name, values in joined.items()}
    spread = {name: np.mean([part.std(axis=0).mean() for part in parts if len(part) > 100]) for name, parts in pixels.items()}
    assert mean["water"] < 0.8 * mean["ground"]
    assert mean["tree"] < 0.8 * mean["ground"]
    assert green["tree"] > green["ground"] + 10
    assert green["tree"] > green["road"] + 10
    assert spread["water"] < 0.6 * min(spread["building"], spread["ground"])


def test_every_class_is_often_absent_and_often_there():
    """In windows of 300 m; some of them hold at most one class besides ground, some at least four."""
    shares = np.array([np.bincount(render_scene(seed, 300, 1.0).truth.ravel(), minlength=7)[1:] / 300**2 for seed in range(40)])
    there = shares > 0.0005
    for name, share in zip(CLASSES, there.mean(axis=0), strict=True):
        assert 0.1 < share < 0.95, f"{name} is in {share:.0%} of the windows"
    kinds = there.sum(axis=1)
    assert (kinds <= 1).any()
    assert (kinds >= 4).any()


@pytest.mark.parametrize("direction", [0.0, 0.7, 2.0, 3.9, 5.5])
def test_a_shadow_is_as_long_as_its_object_is_high(direction):
    height, drop = np.zeros((201, 201), np.float32), 0.5
    rows, columns = np.mgrid[:201, :201] - 100
    height[np.hypot(rows, columns) < 4] = 20
    shadow = cast_shadow(height, direction, drop)
    along = columns * np.cos(direction) + rows * np.sin(direction)
    across = columns * np.sin(direction) - rows * np.cos(direction)
    expected = (np.abs(across) < 2) & (along > 5) & (along < 20 / drop - 2)
    assert shadow[expected].mean() > 0.95
    assert not shadow[(np.abs(across) > 7) | (along > 20 / drop + 6) | (along < -5)].any()


def test_crowns_are_the_highest_of_all_domes():
    rng = np.random.default_rng(0)
    trees = np.column_stack([rng.uniform(-3, 67, (200, 2)), rng.uniform(2, 7, 200)])
    canopy, owner = crowns(trees, np.zeros((64, 64), np.float32), 64)
    y, x = np.mgrid[:64, :64] + 0.5
    squared = trees[:, 2, None, None] ** 2 - (x - trees[:, 0, None, None]) ** 2 - (y - trees[:, 1, None, None]) ** 2
    domes = np.sqrt(np.maximum(squared, 0))
    assert np.allclose(canopy, domes.max(axis=0), atol=0.02)
    clear = np.sort(domes, axis=0)[-2] < domes.max(axis=0) - 0.05
    assert np.array_equal(owner[clear], domes.argmax(axis=0)[clear])


@pytest.fixture(scope="module")
def catalog(tmp_path_factory) -> Path:
    return write_catalog(tmp_path_factory.mktemp("demo") / "imagery", SEEDS, SIZE, GSD)


def items_of(catalog: Path) -> list[pystac.Item]:
    return list(pystac.Catalog.from_file(str(catalog)).get_items(recursive=True))


def test_items_say_what_their_files_are(catalog):
    items = items_of(catalog)
    assert [item.id for item in items] == [f"demo-{seed}" for seed in SEEDS]
    for item in items:
        assert item.collection_id == "demo"
        assert [band["common_name"] for band in item.assets["visual"].extra_fields["eo:bands"]] == ["red", "green", "blue"]
        for key, bands, nodata in (("visual", 3, NODATA), ("truth", 1, TRUTH_NODATA)):
            with rasterio.open(item.assets[key].get_absolute_href()) as raster:
                assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert (raster.count, raster.nodata, raster.dtypes[0]) == (bands, nodata, "uint8")
                assert raster.crs.to_string() == item.properties["proj:code"]
                assert list(raster.shape) == item.properties["proj:shape"]
                assert list(raster.transform)[:6] == item.properties["proj:transform"]
                column, row = raster.transform.c / GSD, raster.transform.f / GSD
                assert column == int(column)
                assert row == int(row)
                assert column % 512
                assert row % 512


def test_the_footprint_is_where_the_pixels_are(catalog):
    for item in items_of(catalog):
        with rasterio.open(item.assets["visual"].get_absolute_href()) as raster:
            outline = transform_geom("EPSG:4326", raster.crs, item.geometry)
            inside = rasterize([outline], raster.shape, transform=raster.transform).astype(bool)
            assert (inside != (raster.dataset_mask() > 0)).mean() < 1e-3
        with rasterio.open(item.assets["truth"].get_absolute_href()) as raster:
            assert (inside != (raster.read(1) != TRUTH_NODATA)).mean() < 1e-3
        assert (~inside).mean() == (pytest.approx(3 / 16 * 0.7 / 2, rel=0.02) if item.id == f"demo-{SEEDS[-1]}" else 0)


def test_pixels_are_the_rendered_ones_and_neighbours_agree(catalog):
    left, right = items_of(catalog)
    for key in ("visual", "truth"):
        with rasterio.open(left.assets[key].get_absolute_href()) as a, rasterio.open(right.assets[key].get_absolute_href()) as b:
            assert b.transform.c - a.transform.c == (SIZE - OVERLAP) * GSD
            west, east, seen = a.read(), b.read(), b.dataset_mask() > 0
        first, second = (np.atleast_3d(getattr(render_scene(seed, SIZE, GSD), {"visual": "rgb"}.get(key, key))) for seed in SEEDS)
        assert np.array_equal(np.moveaxis(west, 0, -1), first)
        assert np.array_equal(np.moveaxis(east, 0, -1)[:, OVERLAP:][seen[:, OVERLAP:]], second[:, OVERLAP:][seen[:, OVERLAP:]])
        assert np.array_equal(east[:, :, :OVERLAP][:, seen[:, :OVERLAP]], west[:, :, -OVERLAP:][:, seen[:, :OVERLAP]])


def test_the_area_is_an_irregular_polygon_within_the_footprints(catalog):
    (area,) = gpd.read_file(catalog.parent / "aoi.geojson").geometry
    assert area.geom_type == "Polygon"
    assert area.is_valid
    assert union_all([shape(item.geometry) for item in items_of(catalog)]).contains(area)
    assert 0.6 < area.area / area.envelope.area < 0.95


def test_a_whole_folder_is_left_alone_and_a_new_one_is_equal(catalog, tmp_path):
    files = sorted(path.relative_to(catalog.parent) for path in catalog.parent.rglob("*") if path.is_file())
    times = [(catalog.parent / path).stat().st_mtime_ns for path in files]
    assert write_catalog(catalog.parent, SEEDS, SIZE, GSD) == catalog
    assert [(catalog.parent / path).stat().st_mtime_ns for path in files] == times
    again = write_catalog(tmp_path / "again", SEEDS, SIZE, GSD).parent
    assert all((again / path).read_bytes() == (catalog.parent / path).read_bytes() for path in files)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_another_folder_is_refused_and_untouched(catalog, tmp_path):
    with pytest.raises(ValueError, match=r"must be new or hold the demo catalog of .*640"):
        write_catalog(catalog.parent, SEEDS[:1], SIZE, GSD)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="got something else"):
        write_catalog(tmp_path, SEEDS, SIZE, GSD)
    with pytest.raises(ValueError, match="at least one seed"):
        write_catalog(tmp_path / "none", [])
    assert json.loads(catalog.read_text())["demo:recipe"]["seeds"] == list(SEEDS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_killed_rendering_leaves_no_half_catalog(tmp_path):
    code = "import sys; from pathlib import Path; from geopixel.demo import write_catalog; write_catalog(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "imagery")])
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("visual.tif")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "imagery").exists()
    assert write_catalog(tmp_path / "imagery", SEEDS[:1], 64, GSD).is_file()


def test_the_demo_has_every_class():
    """At four times the default gsd and a quarter of its size: the same ground."""
    counts = sum(np.bincount(render_scene(seed, 512, 2.0).truth.ravel(), minlength=7) for seed in DEMO_SEEDS)
    assert (counts[1:] / counts.sum() > 0.001).all(), dict(zip(CLASSES, counts[1:], strict=True))
