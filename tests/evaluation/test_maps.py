"""Maps against what is there: counted by hand from the whole rasters, by scipy, and in loops."""

from __future__ import annotations

import json
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
import xarray as xr
from affine import Affine
from rasterio.features import geometry_mask
from scipy import stats
from scipy.optimize import linear_sum_assignment

from geopixel.demo import CLASSES
from geopixel.evaluation import evaluate_map, evaluate_run
from geopixel.evaluation.maps import (
    Squares,
    block_bootstrap,
    calibration,
    count_pixels,
    map_figures,
    match_objects,
    threshold_curve,
)
from geopixel.evaluation.truth import Truth, read_truth, rendered_truth
from geopixel.pipeline import load_run
from geopixel.storage import Folder
from geopixel.types import CONFIDENCE_LEVELS
from tests.conftest import PROMPTS, rasters


def transform(data: xr.Dataset) -> Affine:
    return Affine(0.5, 0, float(data["x"][0]) - 0.25, 0, -0.5, float(data["y"][0]) + 0.25)


def as_file(geometries: Any, path: Path, crs: str = "EPSG:32633") -> Path:
    gpd.GeoDataFrame(geometry=geometries, crs=crs).to_file(path)
    return path


def test_a_map_against_its_own_features_is_perfect(serial: Path, tmp_path: Path) -> None:
    folder = Folder(str(serial))
    features = gpd.read_parquet(serial / "features.parquet")
    for prompt in PROMPTS:
        labels = as_file(features[features["prompt"] == prompt].to_crs("EPSG:32633").geometry, tmp_path / f"{prompt}.gpkg")
        scores = evaluate_map(folder, prompt, read_truth(labels, None, load_run(folder)))
        assert {name: scores[name] for name in ("IoU", "F1", "precision", "recall", "pixel_precision", "pixel_recall", "area_error")} == {
            "IoU": 1, "F1": 1, "precision": 1, "recall": 1, "pixel_precision": 1, "pixel_recall": 1, "area_error": 0
        }  # fmt: skip
        assert scores["interval95"]["IoU"] == [1, 1]
        assert scores["objects_found"] == scores["objects_true"] == scores["objects_matched"] > 0
        assert scores["best_IoU"] == pytest.approx(1, abs=0.05)  # stored confidence is rounded, the mask is not
        json.dumps(scores, allow_nan=False)


def test_rendered_truth_is_the_class_rasters_counted_by_hand(catalog: Path, serial: Path) -> None:
    """The class rasters pasted onto the map's pixels by their coordinates alone."""
    data = rasters(serial)
    codes = np.full((data.sizes["y"], data.sizes["x"]), 255, np.uint8)
    left, top = float(data["x"][0]), float(data["y"][0])
    for path in sorted(catalog.parent.glob("demo/*/truth.tif")):
        with rasterio.open(path) as source:
            x, y = source.xy(0, 0)
            column, row = round((x - left) / 0.5), round((top - y) / 0.5)
            pixels = source.read(1)
            place = codes[row : row + source.height, column : column + source.width]
            place[pixels != 255] = pixels[pixels != 255]
    run = load_run(Folder(str(serial)))
    inside = geometry_mask([run.area], codes.shape, transform(data), invert=True) & (codes != 255)
    report = evaluate_run(Folder(str(serial)), rendered_truth)
    ious = []
    for index, prompt in enumerate(PROMPTS):
        found, there = inside & (data["mask"].values[index] == 1), inside & (codes == CLASSES[prompt])
        scores = report["prompts"][prompt]
        ious.append((found & there).sum() / (found | there).sum())
        assert scores["IoU"] == pytest.approx(ious[-1], abs=1e-12)
        assert scores["pixel_recall"] == pytest.approx((found & there).sum() / there.sum(), abs=1e-12)
        assert scores["area_error"] == pytest.approx(found.sum() / there.sum() - 1, abs=1e-12)
        assert scores["area_true_m2"] == pytest.approx(there.sum() * 0.25, rel=1e-3)  # UTM near its central meridian: 0.9996 squared
        assert scores["objects_true"] > 0
    assert report["mIoU"] == pytest.approx(np.mean(ious))


def test_only_the_window_counts_and_ground_without_an_answer_is_not_found(serial: Path, tmp_path: Path) -> None:
    """Labels and window as files in other CRSs; the same counted on the whole rasters."""
    folder, data = Folder(str(serial)), rasters(serial)
    run = load_run(folder)
    left, bottom, right, top = run.area.bounds
    centre = ((left + right) / 2, (bottom + top) / 2)
    window = shapely.Point(centre).buffer(150.3)
    labels = [shapely.box(centre[0] + dx, centre[1] + dy, centre[0] + dx + 21.2, centre[1] + dy + 17.7) for dx in range(-200, 200, 40) for dy in (-60, 35)]
    labels = as_file([*labels, shapely.Point(centre)], tmp_path / "labels.geojson")  # written in EPSG:32633: pyogrio names the CRS
    window_file = as_file(gpd.GeoSeries([window], crs="EPSG:32633").to_crs("EPSG:4326"), tmp_path / "window.geojson", "EPSG:4326")
    truth = read_truth(labels, window_file, run)
    scores = evaluate_map(folder, "building", truth)
    shape = data["status"].shape
    inside = geometry_mask([shapely.intersection(run.area, truth.known)], shape, transform(data), invert=True)
    there = geometry_mask(list(truth.polygons), shape, transform(data), invert=True) & inside
    found = (data["mask"].values[PROMPTS.index("building")] == 1) & inside
    assert scores["IoU"] == pytest.approx((found & there).sum() / (found | there).sum(), abs=1e-12)
    assert scores["answered"] == pytest.approx((data["confidence"].values[0][inside] != 255).mean(), abs=1e-12)
    assert truth.known.area == pytest.approx(window.area, rel=1e-6)
    assert scores["area_m2"] == pytest.approx(inside.sum() * 0.25, rel=1e-3)
    levels = data["confidence"].values[0][inside].astype(int)
    for point in scores["thresholds"][::5]:
        chosen = (levels != 255) & (levels >= point["threshold"] * CONFIDENCE_LEVELS)
        assert point["recall"] == pytest.approx((chosen & there[inside]).sum() / there.sum(), abs=1e-12)


def test_objects_of_windows_apart_are_all_counted(serial: Path) -> None:
    """Two windows on a lake: the centroid of what they leave of it lies between them, where nothing is known."""
    folder = Folder(str(serial))
    run = load_run(folder)
    lakes = gpd.read_parquet(serial / "features.parquet").query("prompt == 'water'").to_crs(run.grid.crs).geometry.to_numpy()
    lake = lakes[shapely.area(lakes).argmax()]
    left, bottom, right, top = lake.bounds
    known = shapely.union_all([shapely.box(left, bottom, 0.7 * left + 0.3 * right, top), shapely.box(0.3 * left + 0.7 * right, bottom, right, top)])
    assert not shapely.intersects(shapely.centroid(shapely.intersection(lake, known)), known)
    scores = evaluate_map(folder, "water", Truth(lakes, known))
    there = shapely.area(shapely.intersection(lakes, known)) >= run.grid.resolution**2 / 2
    assert scores["objects_found"] == scores["objects_true"] == scores["objects_matched"] == there.sum() > 0
    assert scores["F1"] == 1


def test_every_pixel_of_a_region_is_counted_once_in_the_square_it_lies_in(serial: Path) -> None:
    folder, data = Folder(str(serial)), rasters(serial)
    run = load_run(folder)
    squares = Squares.over(run.area)
    histogram = count_pixels(folder, run.grid, 0, np.array([run.area]), run.area, squares)
    inside = geometry_mask([run.area], data["status"].shape, transform(data), invert=True)
    assert histogram.sum() == histogram[:, 1].sum() == inside.sum()
    assert len(np.flatnonzero(histogram.any(axis=(1, 2, 3)))) >= 64
    rows, columns = np.nonzero(inside)
    x, y = transform(data) @ (columns + 0.5, rows + 0.5)
    for number in (0, len(squares) // 2, len(squares) - 1):
        west, north = squares.left + number % squares.columns * squares.edge, squares.top - number // squares.columns * squares.edge
        here = (x >= west) & (x < west + squares.edge) & (y <= north) & (y > north - squares.edge)
        assert histogram[number].sum() == here.sum()


def test_the_features_may_be_in_another_crs_and_in_parts(serial: Path, tmp_path: Path) -> None:
    """As GeoParquet in OGC:CRS84, and as a folder of such files."""
    expected = evaluate_map(Folder(str(serial)), "building", rendered_truth(load_run(Folder(str(serial))), "building"))
    other = tmp_path / "other"
    shutil.copytree(serial, other, ignore=shutil.ignore_patterns("predictions", "parts"))
    features = gpd.read_parquet(other / "features.parquet").to_crs("OGC:CRS84")
    (other / "features.parquet").unlink()
    for number in range(2):
        sink = BytesIO()
        features[number::2].to_parquet(sink)
        Folder(str(other)).put(f"features.parquet/part-{number}.parquet", sink.getvalue())
    scores = evaluate_map(Folder(str(other)), "building", rendered_truth(load_run(Folder(str(other))), "building"))
    assert scores == expected
    assert expected["objects_found"] > 0


def test_objects_are_matched_as_the_best_assignment_does() -> None:
    """Against scipy's assignment of most pairs, on polygons that do not overlap one another."""
    rng = np.random.default_rng(4)
    seen = set()
    for _ in range(20):
        corner = np.array([(x, y) for x in range(0, 60, 12) for y in range(0, 60, 12)])[rng.random(25) < 0.6]
        true = shapely.box(*corner.T, *(corner + rng.uniform(4, 8, corner.shape)).T)
        moved = corner + rng.uniform(0, 3, corner.shape)
        found = shapely.box(*moved.T, *(moved + rng.uniform(4, 8, corner.shape)).T)[rng.permutation(len(corner))[: rng.integers(1, 20)]]
        iou = np.array([[shapely.intersection(a, b).area / shapely.union(a, b).area for b in true] for a in found])
        rows, columns = linear_sum_assignment(iou >= 0.5, maximize=True)
        good = iou[rows, columns] >= 0.5
        right, recalled = match_objects(found, true)
        assert set(np.flatnonzero(right)) == set(rows[good])
        assert set(np.flatnonzero(recalled)) == set(columns[good])
        seen.add(int(good.sum()))
    assert len(seen) > 3


def test_one_object_has_one_partner() -> None:
    """Two outlines of one building: the better one counts, the other is wrong. Less than half of it is no match."""
    true = np.array([shapely.box(0, 0, 10, 10), shapely.box(20, 0, 30, 10)])
    found = np.array([shapely.box(0, 0, 10, 8), shapely.box(0, 0, 10, 9), shapely.box(20, 0, 30, 4.9)])
    right, recalled = match_objects(found, true)
    assert right.tolist() == [False, True, False]
    assert recalled.tolist() == [True, False]
    nothing = np.zeros(0, object)
    assert [flags.tolist() for flags in match_objects(nothing, true)] == [[], [False, False]]
    assert [flags.tolist() for flags in match_objects(found, nothing)] == [[False] * 3, []]


def test_figures_of_a_worked_example() -> None:
    """30 pixels right of 50 found and 60 true; 4 of 5 objects found are right, and are 4 of 8."""
    figures = map_figures(np.array([30, 50, 60, 4, 5, 4, 8]))
    expected = {"IoU": 30 / 80, "pixel_precision": 0.6, "pixel_recall": 0.5, "precision": 0.8, "recall": 0.5, "F1": 8 / 13, "area_error": -1 / 6}
    assert {name: float(value) for name, value in figures.items()} == pytest.approx(expected)
    assert figures["F1"] == pytest.approx(stats.hmean([0.8, 0.5]))
    empty = map_figures(np.zeros(7))
    assert empty.pop("IoU") == 1
    assert np.isnan(list(empty.values())).all()


def test_intervals_are_those_of_scipy_s_bootstrap() -> None:
    rng = np.random.default_rng(8)
    true = rng.integers(50, 200, 60)
    found = rng.integers(40, 220, 60)
    right = (np.minimum(true, found) * rng.beta(8, 2, 60)).astype(int)
    objects = rng.integers(0, 9, (60, 4))
    counts = np.column_stack([right, found, true, objects])
    intervals = block_bootstrap(counts, map_figures, samples=8000, seed=1)

    def overall(right: np.ndarray, found: np.ndarray, true: np.ndarray, axis: int) -> np.ndarray:
        both = right.sum(axis)
        return both / (found.sum(axis) + true.sum(axis) - both)

    expected = stats.bootstrap((right, found, true), overall, paired=True, method="percentile", n_resamples=8000, rng=2).confidence_interval
    width = expected.high - expected.low
    assert intervals["IoU"] == pytest.approx((expected.low, expected.high), abs=0.05 * width)
    assert intervals == block_bootstrap(counts, map_figures, samples=8000, seed=1)
    assert np.isnan(block_bootstrap(np.zeros((5, 7)), map_figures)["F1"]).all()


def test_thresholds_and_calibration_are_those_of_single_pixels() -> None:
    """Every pixel for itself, in plain comparisons."""
    rng = np.random.default_rng(9)
    level = rng.integers(0, CONFIDENCE_LEVELS + 2, 5000)  # the last: no answer
    true = rng.random(5000) < level / 50
    by_level = np.array([np.bincount(level[true == side], minlength=CONFIDENCE_LEVELS + 2) for side in (False, True)])
    curve = threshold_curve(by_level)
    assert [point["threshold"] for point in curve] == [step / 32 for step in range(1, 33)]
    for point in curve:
        found = (level <= CONFIDENCE_LEVELS) & (level / CONFIDENCE_LEVELS >= point["threshold"])
        assert point["precision"] == pytest.approx((found & true).sum() / found.sum())
        assert point["recall"] == pytest.approx((found & true).sum() / true.sum())
        assert point["IoU"] == pytest.approx((found & true).sum() / (found | true).sum())
    for each in calibration(by_level):
        here = level == each["confidence"] * CONFIDENCE_LEVELS
        assert each["pixels"] == here.sum()
        assert each["true_share"] == pytest.approx(true[here].mean())


def test_a_confidence_that_tells_the_truth_has_no_calibration_error(serial: Path) -> None:
    """And the error of the map is the mean distance, pixel by pixel."""
    folder, data = Folder(str(serial)), rasters(serial)
    run = load_run(folder)
    truth = rendered_truth(run, "water")
    scores = evaluate_map(folder, "water", truth)
    inside = geometry_mask([shapely.intersection(run.area, truth.known)], data["status"].shape, transform(data), invert=True)
    there = geometry_mask(list(truth.polygons), data["status"].shape, transform(data), invert=True)
    level = data["confidence"].values[PROMPTS.index("water")]
    looked = inside & (level != 255)
    distance = 0.0
    for value in np.unique(level[looked]):
        here = looked & (level == value)
        distance += here.sum() * abs(value / CONFIDENCE_LEVELS - there[here].mean())
    assert scores["ECE"] == pytest.approx(distance / looked.sum())
    assert scores["best_IoU"] == max(point["IoU"] for point in scores["thresholds"])
    assert {"threshold": scores["best_threshold"], "IoU": scores["best_IoU"]}.items() <= max(scores["thresholds"], key=lambda point: point["IoU"]).items()


def test_what_cannot_be_compared_is_said(serial: Path, tmp_path: Path) -> None:
    folder = Folder(str(serial))
    run = load_run(folder)
    with pytest.raises(ValueError, match="the run was asked for building, water, not 'road'"):
        evaluate_map(folder, "road", Truth(np.array([run.area]), run.area))
    far = as_file([shapely.box(0, 0, 1, 1)], tmp_path / "far.gpkg")
    with pytest.raises(ValueError, match="outside the area of the run"):
        evaluate_map(folder, "water", read_truth(far, far, run))
    with pytest.raises(ValueError, match=r"nowhere\.gpkg cannot be read"):
        read_truth(tmp_path / "nowhere.gpkg", None, run)
    with pytest.raises(ValueError, match=r"points\.gpkg holds no polygon"):
        read_truth(as_file([shapely.Point(0, 0)], tmp_path / "points.gpkg"), None, run)
    with pytest.raises(ValueError, match=r"no polygon of .*far\.gpkg lies in the area of the run"):
        read_truth(far, None, run)
    assert len(read_truth(far, as_file([run.area], tmp_path / "here.gpkg"), run).polygons) == 1  # nothing is there, and known to be
    with pytest.raises(ValueError, match="known of no pixel of the run, which are 0.5 wide"):
        evaluate_map(folder, "water", Truth(np.array([run.area]), run.area.centroid.buffer(0.01)))
    gpd.GeoDataFrame(geometry=[run.area]).to_parquet(tmp_path / "bare.parquet")
    with pytest.raises(ValueError, match=r"bare\.parquet names no coordinate reference system"):
        read_truth(tmp_path / "bare.parquet", None, run)
    with pytest.raises(ValueError, match="not 'airplane'"):
        rendered_truth(run, "airplane")
    with pytest.raises(ValueError, match="holds no finished run"):
        evaluate_run(Folder(str(tmp_path)), rendered_truth)
