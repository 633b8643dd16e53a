"""How right a finished map is against polygons of what is there: pixels, objects, areas, the choice of threshold, and how far its confidence can be
believed, with intervals. Everything about pixels comes from masks.zarr, about objects from features.parquet. Knows the run folder; writes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
import zarr
from affine import Affine
from pyproj import Geod, Transformer
from rasterio.features import geometry_mask
from shapely import Geometry

from geopixel import features, mosaic
from geopixel.evaluation.truth import Truth
from geopixel.pipeline import RUN, Run, check_finished, load_run
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, CONFIDENCE_LEVELS, Grid

MATCH_IOU = 0.5
"""From which on two outlines are the same object, as SpaceNet counts buildings (Van Etten et al. 2018, arXiv:1807.01232)."""
CELLS = 64
"""Squares that the ground is cut into for intervals, about. Many enough to draw from, large enough that neighbours are nearly independent."""
SAMPLES = 2000
LEVEL = 0.95

_NO_ANSWER = CONFIDENCE_LEVELS + 1
_COLUMNS = ("intersection", "found", "true", "right_objects", "found_objects", "recalled_objects", "true_objects")
"""Counts of a square of ground: three of pixels; found objects that match a true one and all; true objects that are matched and all."""


def evaluate_map(folder: Folder, prompt: str, truth: Truth, *, seed: int = 0) -> dict[str, Any]:
    """Figures of one prompt of a run over the part of its area where the truth is known: a JSON object, shares of 1, None where not defined.

    IoU, pixel_precision, pixel_recall: of the published mask; ground without an answer counts as not found, `answered` is the share that has
    one. precision, recall, F1: of objects, see match_objects. area_error: found area over true area, less 1. interval95: see block_bootstrap.
    thresholds, best_threshold, best_IoU: see threshold_curve. calibration, ECE: see calibration. Raises ValueError where the prompt is none of
    the run's, the truth is known of no pixel of it, or the folder holds no finished run.
    """
    run = _load_finished(folder)
    if prompt not in run.request.prompts:
        raise ValueError(f"the run was asked for {', '.join(run.request.prompts)}, not {prompt!r}")
    region = shapely.intersection(run.area, truth.known)
    if not region.area > 0:
        raise ValueError(f"the truth lies outside the area of the run {folder.url}")
    squares = Squares.over(region)
    histogram = count_pixels(folder, run.grid, run.request.prompts.index(prompt), truth.polygons, region, squares)
    if not histogram.any():
        raise ValueError(f"the truth is known of no pixel of the run, which are {run.grid.resolution} wide: its window is too small")
    found, true = (_clip(polygons, region, run.grid.resolution) for polygons in (_read_features(folder, run, prompt), truth.polygons))
    matched = match_objects(found, true)
    counts = np.column_stack([
        histogram[:, 1, 1].sum(axis=-1),
        histogram[:, :, 1].sum(axis=(1, 2)),
        histogram[:, 1].sum(axis=(1, 2)),
        *(squares.count(polygons, chosen) for polygons, flags in ((found, matched[0]), (true, matched[1])) for chosen in (flags, np.ones(len(flags), bool))),
    ])
    counts = counts[histogram.any(axis=(1, 2, 3)) | counts.any(axis=1)]
    total = dict(zip(_COLUMNS, counts.sum(axis=0).tolist(), strict=True))
    pixel_m2 = run.grid.resolution**2 * _ground_scale(region, run.grid.crs)
    by_level = histogram.sum(axis=(0, 2))
    curve = threshold_curve(by_level)
    best = max(curve, key=lambda point: point["IoU"])
    bins = calibration(by_level)
    return {
        "prompt": prompt,
        **_plain(map_figures(counts.sum(axis=0))),
        "interval95": {name: list(map(_number, ends)) for name, ends in block_bootstrap(counts, map_figures, seed=seed).items()},
        "objects_found": total["found_objects"],
        "objects_true": total["true_objects"],
        "objects_matched": total["right_objects"],
        "area_m2": pixel_m2 * int(histogram.sum()),
        "area_found_m2": pixel_m2 * total["found"],
        "area_true_m2": pixel_m2 * total["true"],
        "answered": float(1 - by_level[:, _NO_ANSWER].sum() / histogram.sum()),
        "threshold": run.request.threshold,
        "best_threshold": best["threshold"],
        "best_IoU": best["IoU"],
        "thresholds": curve,
        "calibration": bins,
        "ECE": _calibration_error(bins),
        "squares": {"count": len(counts), "edge_m": squares.edge * math.sqrt(_ground_scale(region, run.grid.crs))},
    }


def evaluate_run(folder: Folder, truth: Callable[[Run, str], Truth], prompt: str | None = None) -> dict[str, Any]:
    """The figures of a prompt, as evaluate_map has them; without one, `prompts`: the figures of each prompt by its name, and `mIoU`: their mean
    IoU. truth: (run, prompt) -> what is there. Raises as evaluate_map does."""
    run = _load_finished(folder)
    if prompt is not None:
        return evaluate_map(folder, prompt, truth(run, prompt))
    prompts = {name: evaluate_map(folder, name, truth(run, name)) for name in run.request.prompts}
    return {"mIoU": float(np.mean([figures["IoU"] for figures in prompts.values()])), "prompts": prompts}


@dataclass(frozen=True, slots=True)
class Squares:
    """Equal squares side by side over the bounds of a region, numbered row by row from the north-west."""

    left: float
    top: float
    edge: float
    """In units of the CRS."""
    columns: int
    rows: int

    @classmethod
    def over(cls, region: Geometry) -> Squares:
        """About CELLS of them cover the region."""
        left, bottom, right, top = region.bounds
        edge = math.sqrt(region.area / CELLS)
        return cls(left, top, edge, max(1, math.ceil((right - left) / edge)), max(1, math.ceil((top - bottom) / edge)))

    def __len__(self) -> int:
        return self.columns * self.rows

    def at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Numbers of the squares at places in the CRS, int64; x and y broadcast."""
        column = np.clip((x - self.left) // self.edge, 0, self.columns - 1).astype(np.int64)
        row = np.clip((self.top - y) // self.edge, 0, self.rows - 1).astype(np.int64)
        return row * self.columns + column

    def count(self, polygons: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        """(squares,) how many of the chosen polygons there are in each, by a point on each polygon: a centroid may lie beside its own."""
        within = shapely.point_on_surface(polygons[chosen])
        return np.bincount(self.at(shapely.get_x(within), shapely.get_y(within)), minlength=len(self))


def count_pixels(folder: Folder, grid: Grid, prompt: int, polygons: np.ndarray, region: Geometry, squares: Squares) -> np.ndarray:
    """Pixels of a map whose centre is in the region: (squares, true 0/1, found 0/1, levels) int64, where levels are the stored confidence 0 to
    CONFIDENCE_LEVELS and one more for no answer. prompt: its index. polygons: of the truth, a pixel is true when its centre is in one."""
    root: Any = zarr.open_group(folder.zarr(mosaic.MASKS), mode="r")
    column, row = (round(sign * float(root[name][0]) / grid.resolution - 0.5) for sign, name in ((1, "x"), (-1, "y")))
    affine = grid.geobox(column, row, 1, 1).affine
    levels = _NO_ANSWER + 1
    tree = shapely.STRtree(polygons)
    total = np.zeros(len(squares) * 4 * levels, np.int64)
    for rows, columns in _windows(root["mask"].shape[1:], affine, region):
        here, shape = affine @ Affine.translation(columns.start, rows.start), (rows.stop - rows.start, columns.stop - columns.start)
        extent = shapely.box(*here @ (0, shape[0]), *here @ (shape[1], 0))
        inside = geometry_mask([region], shape, here, invert=True)
        near = polygons[tree.query(extent)]
        true = geometry_mask(near, shape, here, invert=True) if len(near) else np.zeros(shape, bool)
        found = root["mask"][prompt, rows, columns] == 1
        level = np.minimum(root["confidence"][prompt, rows, columns], _NO_ANSWER)
        x, y = here.c + here.a * (np.arange(shape[1]) + 0.5), here.f + here.e * (np.arange(shape[0]) + 0.5)
        square = squares.at(x[None, :], y[:, None])
        key = ((square * 2 + true) * 2 + found) * levels + level
        total += np.bincount(key[inside], minlength=len(total))
    return total.reshape(len(squares), 2, 2, levels)


def match_objects(found: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which found and which true polygons have a partner, bool each: pairs of IoU MATCH_IOU or more, one to one, the best first.

    As SpaceNet scores buildings (arXiv:1807.01232), with the order of IoU in place of that of the answers. Polygons that do not overlap one
    another, as those of a map, can have one such partner at most, and order is of no account.
    """
    right, recalled = np.zeros(len(found), bool), np.zeros(len(true), bool)
    one, other = shapely.STRtree(true).query(found, predicate="intersects")
    shared = shapely.area(shapely.intersection(found[one], true[other]))
    iou = shared / (shapely.area(found)[one] + shapely.area(true)[other] - shared)
    for pair in np.argsort(-iou, kind="stable"):
        if iou[pair] < MATCH_IOU:
            break
        if not (right[one[pair]] or recalled[other[pair]]):
            right[one[pair]] = recalled[other[pair]] = True
    return right, recalled


def map_figures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of counts (..., _COLUMNS), each of shape (...); NaN where nothing is counted. IoU (Jaccard 1912) is 1 where nothing is true and
    nothing found; F1 is the harmonic mean of precision and recall (van Rijsbergen 1979)."""
    intersection, found, true, right, objects_found, recalled, objects_true = np.moveaxis(np.asarray(counts, float), -1, 0)
    union = found + true - intersection
    return {
        "IoU": np.where(union > 0, _ratio(intersection, union), 1.0),
        "pixel_precision": _ratio(intersection, found),
        "pixel_recall": _ratio(intersection, true),
        "precision": _ratio(right, objects_found),
        "recall": _ratio(recalled, objects_true),
        "F1": _ratio(right + recalled, objects_found + objects_true),
        "area_error": _ratio(found, true) - 1,
    }


def block_bootstrap(
    counts: np.ndarray, figures: Callable[[np.ndarray], dict[str, np.ndarray]], *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Interval of every figure: percentiles over redrawn maps, each made of as many squares of ground, drawn with replacement.

    Neighbouring pixels err together, so squares are drawn and not pixels (fixed blocks: Hall 1985, Stoch. Proc. Appl. 20; Lahiri 2003,
    Resampling Methods for Dependent Data). It says how much another area of the same kind could differ; nothing of errors in the labels.
    counts: (squares, k); figures: (..., k) -> name -> (...). NaN where a figure is never defined.
    """
    drawn = np.random.default_rng(seed).multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=samples) @ counts
    ends = [50 - 50 * level, 50 + 50 * level]
    intervals = {}
    for name, values in figures(drawn).items():
        low, high = np.percentile(known, ends) if len(known := values[~np.isnan(values)]) else (np.nan, np.nan)
        intervals[name] = (float(low), float(high))
    return intervals


def threshold_curve(by_level: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall and IoU of pixels for every threshold that the stored confidence tells apart (1 / CONFIDENCE_LEVELS up to 1), as if the map
    had been made with it. by_level: (true 0/1, levels). The best of them is chosen on these very labels: elsewhere expect a little less."""
    found = by_level[:, :_NO_ANSWER][:, ::-1].cumsum(axis=1)[:, ::-1]  # of this confidence or more
    true = by_level[1].sum()
    curve = []
    for level in range(1, _NO_ANSWER):
        wrong, right = found[:, level].tolist()
        union = true + wrong
        figures = {"precision": _ratio(right, right + wrong), "recall": _ratio(right, true), "IoU": right / union if union else 1.0}
        curve.append({"threshold": level / CONFIDENCE_LEVELS, **_plain(figures)})
    return curve


def calibration(by_level: np.ndarray) -> list[dict[str, Any]]:
    """Of the pixels that the map gives each stored confidence, the share that is true: equal to it for a map that can be believed (reliability
    diagram, DeGroot and Fienberg 1983). by_level: (true 0/1, levels). Levels without a pixel are left out."""
    pixels = by_level.sum(axis=0)[:_NO_ANSWER]
    return [
        {"confidence": level / CONFIDENCE_LEVELS, "true_share": float(by_level[1, level] / pixels[level]), "pixels": int(pixels[level])}
        for level in np.flatnonzero(pixels).tolist()
    ]


def _calibration_error(bins: list[dict[str, Any]]) -> float | None:
    """Expected calibration error: mean distance of confidence and share over all pixels (Guo et al. 2017, arXiv:1706.04599)."""
    pixels = sum(each["pixels"] for each in bins)
    return sum(each["pixels"] * abs(each["confidence"] - each["true_share"]) for each in bins) / pixels if pixels else None


def _load_finished(folder: Folder) -> Run:
    if not folder.exists(RUN):  # asked first: to read from a local folder would make it
        raise ValueError(f"{folder.url} holds no finished run")
    check_finished(folder)
    return load_run(folder)


def _windows(shape: tuple[int, int], affine: Affine, region: Geometry) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of a raster that together hold the region's pixels, shard by shard; shards beside the region are left out."""
    left, bottom, right, top = region.bounds
    (first_column, first_row), (last_column, last_row) = ~affine @ (left, top), ~affine @ (right, bottom)
    shapely.prepare(region)
    for row in range(0, shape[0], BLOCK_SIZE):
        for column in range(0, shape[1], BLOCK_SIZE):
            rows = slice(max(row, math.floor(first_row)), min(row + BLOCK_SIZE, shape[0], math.ceil(last_row)))
            columns = slice(max(column, math.floor(first_column)), min(column + BLOCK_SIZE, shape[1], math.ceil(last_column)))
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            if shapely.intersects(region, shapely.box(*affine @ (columns.start, rows.stop), *affine @ (columns.stop, rows.start))):
                yield rows, columns


def _read_features(folder: Folder, run: Run, prompt: str) -> np.ndarray:
    """The outlines of a prompt in the CRS of the grid, from one file or a folder of parts."""
    paths = [features.FEATURES] if folder.exists(features.FEATURES) else [p for p in folder.list(features.FEATURES) if p.endswith(".parquet")]
    if not paths:
        raise ValueError(f"{folder.url} holds no {features.FEATURES}: the run is not whole")
    table = pd.concat([gpd.read_parquet(BytesIO(folder.get(path)), columns=["prompt", "geometry"]) for path in paths])
    return np.asarray(table[table["prompt"] == prompt].to_crs(run.grid.crs).geometry)


def _clip(polygons: np.ndarray, region: Geometry, resolution: float) -> np.ndarray:
    """What of the polygons lies in the region, without those of which less than half a pixel does."""
    polygons = polygons[shapely.STRtree(polygons).query(region, predicate="intersects")]
    clipped = np.where(shapely.contains_properly(region, polygons), polygons, shapely.intersection(polygons, region))
    return clipped[shapely.area(clipped) >= resolution**2 / 2]


def _ground_scale(region: Geometry, crs: str) -> float:
    """Square metres on the WGS 84 ellipsoid for a square unit of the CRS, over the region."""
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    lonlat = shapely.orient_polygons(shapely.transform(region, to_degrees.transform, interleaved=False))
    return Geod(ellps="WGS84").geometry_area_perimeter(lonlat)[0] / region.area


def _ratio(part: Any, whole: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(part, np.where(np.equal(whole, 0), np.nan, whole))


def _plain(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Any) -> float | None:
    """For JSON, which has no NaN."""
    return None if np.isnan(value) else float(value)
