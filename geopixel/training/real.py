"""Real imagery as labelled grounds, and windows of them: drone chips with buildings, Dubai tiles with five classes, NAIP with what its near infrared
tells of water and vegetation. Knows files and labels; nothing of questions."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from scipy import ndimage

from geopixel.training.words import CONCEPTS, OTHER, UNLABELLED

CHIP = 256
"""Pixels along an edge of a building chip."""
CHIP_EDGES = (224, 1200)
"""Pixels along an edge of windows of drone imagery (0.15 m): single chips to tiles of 1024 pixels with their margins."""
DUBAI_EDGES = (200, 420)
NAIP_EDGES = (200, 600)

DUBAI_PALETTE = {"#3C1098": "building", "#8429F6": "land", "#6EC1E4": "road", "#FEDD3A": "vegetation", "#E2A929": "water", "#9B9B9B": None}
DUBAI_MARGIN = 1
"""Pixels around every border between two colours of a Dubai mask that count as unlabelled: JPEG blurs colours there, and a blend of two may be
nearest to a third."""
DUBAI_KEPT_BACK = (8,)
"""Tiles, of nine pictures each, that training never sees: the one in which all five classes are common."""
DUBAI_PER_TILE = 9

NAIP_TRAINED = 0.66
"""Western share of the NAIP ground that training sees; the rest, at all dates, is kept back."""
WATER_INDEX = (0.05, 0.2)
VEGETATION_INDEX = (0.12, 0.25)
"""NDWI = (G - NIR) / (G + NIR) (McFeeters 1996) and NDVI = (NIR - R) / (NIR + R), of the 8-bit values: from the second number on it is water, or
vegetation, below the first it is not; between them nobody says."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A labelled picture to draw windows from."""

    site: str
    rgb: np.ndarray
    """(height, width, 3) uint8"""
    truth: np.ndarray
    """(height, width) uint8, codes of CONCEPTS, OTHER or UNLABELLED"""
    known: tuple[str, ...]
    """The concepts that the labels tell."""
    edges: tuple[int, int]
    """Range of the windows' edges, pixels."""


def read_picture(path: Path) -> np.ndarray:
    """(height, width, 3) uint8"""
    with Image.open(path) as picture:
        return np.array(picture.convert("RGB"))


def building_grounds(folder: Path, leave_out: Sequence[str] = ()) -> list[Ground]:
    """The chips of index.csv put together as they lie on the ground: neighbours make one picture, gaps in it are unlabelled. Sites of leave_out
    are not read. Raises ValueError for one that is not there: a slip would let it be learnt from."""
    with (folder / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    sites = {row["site"] for row in rows}
    if strange := sorted(set(leave_out) - sites):
        raise ValueError(f"sites to leave out are of {', '.join(sorted(sites))}, got {strange[0]!r}")
    rows = [row for row in rows if row["site"] not in leave_out]
    grounds = []
    for site in sorted({row["site"] for row in rows}):
        chips = [row for row in rows if row["site"] == site]
        edge = float(chips[0]["xmax"]) - float(chips[0]["xmin"])
        west, north = min(float(chip["xmin"]) for chip in chips), max(float(chip["ymax"]) for chip in chips)
        cells = {(round((north - float(chip["ymax"])) / edge), round((float(chip["xmin"]) - west) / edge)): chip["name"] for chip in chips}
        taken = np.zeros(np.array(list(cells)).max(axis=0) + 1, bool)
        taken[tuple(np.array(list(cells)).T)] = True
        clusters, _ = ndimage.label(taken, np.ones((3, 3)))
        for number, (vertical, horizontal) in enumerate(ndimage.find_objects(clusters), start=1):
            shape = ((vertical.stop - vertical.start) * CHIP, (horizontal.stop - horizontal.start) * CHIP)
            rgb, truth = np.zeros((*shape, 3), np.uint8), np.full(shape, UNLABELLED, np.uint8)
            for (row, column), name in cells.items():
                if clusters[row, column] == number:
                    place = tuple(slice(at * CHIP, (at + 1) * CHIP) for at in (row - vertical.start, column - horizontal.start))
                    rgb[place] = read_picture(folder / "img" / f"{name}.jpg")
                    mask = np.array(Image.open(folder / "msk" / f"{name}.png").convert("L")) > 0
                    truth[place] = np.where(mask, CONCEPTS["building"], OTHER)
            grounds.append(Ground(site, rgb, truth, ("building",), CHIP_EDGES))
    return grounds


def clean_dubai_mask(mask: np.ndarray, margin: int = DUBAI_MARGIN) -> np.ndarray:
    """A Dubai mask (height, width, 3) uint8, as JPEG left it, to codes (height, width) uint8: the nearest colour of the palette, unlabelled
    within margin pixels of another colour."""
    palette = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in DUBAI_PALETTE], np.float32)
    nearest = ((mask[:, :, None].astype(np.float32) - palette) ** 2).sum(axis=-1).argmin(axis=-1)
    codes = np.array([UNLABELLED if name is None else CONCEPTS[name] for name in DUBAI_PALETTE.values()], np.uint8)
    size = 2 * margin + 1
    border = ndimage.maximum_filter(nearest, size) != ndimage.minimum_filter(nearest, size)
    return np.where(border, UNLABELLED, codes[nearest]).astype(np.uint8)


def dubai_grounds(folder: Path, *, kept_back: bool) -> list[Ground]:
    """The pictures of the tiles that are kept back from training, or of all others."""
    grounds = []
    for path in sorted((folder / "images").glob("image_*.jpg")):
        number = int(path.stem.removeprefix("image_"))
        tile = (number - 1) // DUBAI_PER_TILE + 1
        if (tile in DUBAI_KEPT_BACK) == kept_back:
            truth = clean_dubai_mask(read_picture(folder / "masks" / f"mask_{number:03d}.jpg"))
            known = tuple(name for name in DUBAI_PALETTE.values() if name)
            grounds.append(Ground(f"dubai {tile}", read_picture(path), truth, known, DUBAI_EDGES))
    return grounds


def label_by_indices(bands: np.ndarray) -> np.ndarray:
    """Red, green, blue and near infrared (4, height, width) to codes (height, width) uint8: water, vegetation, OTHER, UNLABELLED where an index is
    between its thresholds or nothing was observed."""
    red, green, _, infrared = bands.astype(np.float32)
    with np.errstate(invalid="ignore"):
        ndwi, ndvi = (green - infrared) / (green + infrared), (infrared - red) / (infrared + red)
    truth = np.full(red.shape, UNLABELLED, np.uint8)
    truth[(ndwi < WATER_INDEX[0]) & (ndvi < VEGETATION_INDEX[0])] = OTHER
    truth[(ndwi < WATER_INDEX[0]) & (ndvi >= VEGETATION_INDEX[1])] = CONCEPTS["vegetation"]
    truth[ndwi >= WATER_INDEX[1]] = CONCEPTS["water"]
    return truth


def naip_grounds(folder: Path, *, kept_back: bool) -> list[Ground]:
    """Every date of the NAIP scenes below folder: the west of each for training, or the east that is kept back."""
    grounds = []
    for path in sorted(folder.glob("**/*.tif")):
        with rasterio.open(path) as source:
            bands = source.read()
        split = round(bands.shape[2] * NAIP_TRAINED)
        bands = bands[:, :, split:] if kept_back else bands[:, :, :split]
        rgb = np.ascontiguousarray(bands[:3].transpose(1, 2, 0))
        grounds.append(Ground("naip", rgb, label_by_indices(bands), ("water", "vegetation"), NAIP_EDGES))
    return grounds


def draw_window(ground: Ground, rng: np.random.Generator, zoom: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """A window of random size (edges log-uniform, divided by zoom), shape (up to 4 : 3) and place: rgb (height, width, 3), codes (height, width)."""
    size = np.exp(rng.uniform(*np.log(ground.edges))) / zoom
    aspect = np.exp(rng.uniform(-0.14, 0.14))
    height, width = (int(min(limit, round(size * factor))) for limit, factor in zip(ground.truth.shape, (aspect, 1 / aspect), strict=True))
    top, left = rng.integers(0, ground.truth.shape[0] - height + 1), rng.integers(0, ground.truth.shape[1] - width + 1)
    place = slice(top, top + height), slice(left, left + width)
    return ground.rgb[place], ground.truth[place]
