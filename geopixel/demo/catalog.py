"""The demo imagery: rendered scenes side by side on the ground, as COGs with a static STAC catalog and an area to map. Knows
nothing of how the scenes are drawn.

    folder/catalog.json, aoi.geojson, demo/collection.json, demo/<item>/{<item>.json, visual.tif, truth.tif}
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import rasterio
from affine import Affine
from rasterio.warp import transform_geom
from shapely import Polygon, box, union_all
from shapely.geometry import mapping, shape

from geopixel.demo.paint import CLASSES
from geopixel.demo.render import render_scene

TRAINING_SEEDS = range(0, 10_000)
"""Seeds that training and its validation draw from; nothing else does."""
DEMO_SEEDS = (1_000_002, 1_000_008, 1_000_021)
"""Seeds of the demo catalog, never seen by training; taken for landscapes that between them have every class."""

CRS = "EPSG:32633"
ORIGIN = (500_123.5, 5_400_321.0)
"""Metres, upper left corner: a whole number of pixels from the origin of the CRS, but not of tiles."""
TAKEN = datetime(2024, 6, 1, 10, 0, tzinfo=UTC)
NODATA = 0
"""Of visual; no rendered pixel has it."""
TRUTH_NODATA = 255
OVERLAP = 1 / 16
"""Share of a scene that its right neighbour shows too, pixel for pixel."""
WEDGE = (3 / 16, 0.7)
"""Width and height, as shares of a scene, of the upper left corner that the last one lacks: wider than the overlap, so part is a hole."""
AREA = ((0.04, 0.35), (0.11, 0.07), (0.3, 0.13), (0.45, 0.04), (0.73, 0.09), (0.95, 0.06), (0.96, 0.5), (0.88, 0.93), (0.62, 0.85), (0.41, 0.96), (0.14, 0.9))
"""Corners of the area to map, as shares of the ground of all scenes."""
EXTENSIONS = [f"https://stac-extensions.github.io/{name}/schema.json" for name in ("projection/v2.0.0", "raster/v1.1.0", "eo/v1.1.0")]


@dataclass(frozen=True, slots=True)
class Strip:
    """Where the scenes lie: one row, equal squares, each overlapping the next."""

    count: int
    size: int
    """Pixels along an edge of a scene."""
    gsd: float

    @property
    def overlap(self) -> int:
        """Pixel columns that neighbours share."""
        return round(OVERLAP * self.size)

    @property
    def transform(self) -> Affine:
        """Of the first scene."""
        left, top = (round(metres / self.gsd) * self.gsd for metres in ORIGIN)
        return Affine(self.gsd, 0.0, left, 0.0, -self.gsd, top)

    def scene(self, index: int) -> Affine:
        return self.transform @ Affine.translation(index * (self.size - self.overlap), 0)

    def missing(self) -> np.ndarray:
        """(size, size) bool: True in the corner that the last scene lacks."""
        rows, columns = np.ogrid[: self.size, : self.size]
        width, height = (share * self.size for share in WEDGE)
        return (columns + 0.5) / width + (rows + 0.5) / height < 1

    def footprint(self, index: int) -> Polygon:
        """In CRS."""
        size, (width, height) = self.size, (share * self.size for share in WEDGE)
        last = index == self.count - 1
        corners = [(size, 0), (size, size), (0, size), *([(0, height), (width, 0)] if last else [(0, 0)])]
        return Polygon([self.scene(index) @ corner for corner in corners])

    def area(self) -> Polygon:
        """The area to map, in CRS: AREA where there is imagery, four pixels or more from its edge."""
        width = self.size + (self.count - 1) * (self.size - self.overlap)
        wanted = Polygon([self.transform @ (x * width, y * self.size) for x, y in AREA])
        return wanted & union_all([self.footprint(index) for index in range(self.count)]).buffer(-4 * self.gsd, join_style="mitre")


def write_catalog(folder: Path, seeds: Sequence[int] = DEMO_SEEDS, size: int = 2048, gsd: float = 0.5) -> Path:
    """Renders `seeds` from west to east into `folder` and returns its catalog.json.

    A folder appears whole or not at all, and one that is there is left alone. Raises ValueError where there are no seeds, or
    where `folder` holds anything else than this very catalog.
    """
    folder = Path(folder).absolute()
    recipe = {"seeds": list(seeds), "size": size, "gsd": gsd}
    if not seeds:
        raise ValueError("a demo catalog needs at least one seed, got none")
    if folder.exists() and any(folder.iterdir()):
        return check(folder, recipe)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        draft = Path(aside, folder.name)
        render_into(draft, list(seeds), Strip(len(seeds), size, gsd), recipe)
        try:
            draft.rename(folder)
        except OSError:  # somebody else was faster
            return check(folder, recipe)
    return folder / "catalog.json"


def demo_catalog() -> Path:
    """The catalog.json of the demo, rendered once into the user's cache (GEOPIXEL_CACHE, else ~/.cache/geopixel); area: aoi.geojson beside it.

    The folder's name tells the renderer's source, so that a newer renderer makes a new demo.
    """
    source = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    cache = Path(os.environ.get("GEOPIXEL_CACHE") or Path.home() / ".cache" / "geopixel")
    return write_catalog(cache / f"demo-{hashlib.sha256(source).hexdigest()[:12]}")


def check(folder: Path, recipe: dict[str, Any]) -> Path:
    """The catalog.json of a folder that was rendered from this recipe; ValueError where it was not."""
    path = folder / "catalog.json"
    found = json.loads(path.read_text()).get("demo:recipe") if path.is_file() else None
    if found != recipe:
        raise ValueError(f"{folder} must be new or hold the demo catalog of {recipe}, got {found or 'something else'}; choose another folder or delete it")
    return path


def render_into(folder: Path, seeds: list[int], strip: Strip, recipe: dict[str, Any]) -> None:
    items, edge = [], None
    for index, seed in enumerate(seeds):
        scene = render_scene(seed, strip.size, strip.gsd)
        rgb, truth = scene.rgb.copy(), scene.truth.copy()
        if edge:
            rgb[:, : strip.overlap], truth[:, : strip.overlap] = edge
        edge = rgb[:, -strip.overlap :].copy(), truth[:, -strip.overlap :].copy()
        if index == strip.count - 1:
            rgb[strip.missing()], truth[strip.missing()] = NODATA, TRUTH_NODATA
        item = describe(f"demo-{seed}", strip, index)
        place = folder / "demo" / item.id
        place.mkdir(parents=True)
        write_cog(place / "visual.tif", rgb, strip.scene(index), NODATA, "average")
        write_cog(place / "truth.tif", truth[..., None], strip.scene(index), TRUTH_NODATA, "nearest")
        items.append(item)
    area = {"type": "Feature", "properties": {"name": "demo"}, "geometry": geographic(strip.area())}
    (folder / "aoi.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [area]}) + "\n")
    write_stac(folder, items, recipe)


def write_cog(path: Path, pixels: np.ndarray, transform: Affine, nodata: int, resampling: str) -> None:
    """(H, W, bands) uint8, kept exactly; the overviews by `resampling`."""
    height, width, bands = pixels.shape
    options = {"compress": "deflate", "predictor": "yes", "blocksize": 512, "overview_resampling": resampling}
    with rasterio.open(
        path, "w", driver="COG", width=width, height=height, count=bands, dtype="uint8", crs=CRS, transform=transform, nodata=nodata, **options
    ) as raster:
        raster.write(np.moveaxis(pixels, -1, 0))


def describe(name: str, strip: Strip, index: int) -> pystac.Item:
    geometry = geographic(strip.footprint(index))
    item = pystac.Item(
        id=name,
        geometry=geometry,
        bbox=list(shape(geometry).bounds),
        datetime=TAKEN,
        properties={"gsd": strip.gsd, "proj:code": CRS, "proj:shape": [strip.size, strip.size], "proj:transform": list(strip.scene(index))[:6]},
        stac_extensions=EXTENSIONS,
    )
    colours = ("red", "green", "blue")
    assets: dict[str, tuple[str, list[str], int, dict[str, Any]]] = {
        "visual": ("Rendered colours", ["data", "visual"], NODATA, {"eo:bands": [{"name": colour, "common_name": colour} for colour in colours]}),
        "truth": ("Class codes", ["labels"], TRUTH_NODATA, {"demo:classes": CLASSES}),
    }
    for key, (title, roles, nodata, extra) in assets.items():
        bands = [{"data_type": "uint8", "nodata": nodata, "spatial_resolution": strip.gsd}] * (3 if key == "visual" else 1)
        item.add_asset(key, pystac.Asset(f"./{key}.tif", title, media_type=pystac.MediaType.COG, roles=roles, extra_fields={"raster:bands": bands, **extra}))
    return item


def geographic(geometry: Polygon) -> dict[str, Any]:
    """From CRS to a GeoJSON geometry in EPSG:4326, longitude first."""
    return dict(transform_geom(CRS, "EPSG:4326", mapping(geometry), precision=9))


def write_stac(folder: Path, items: list[pystac.Item], recipe: dict[str, Any]) -> None:
    bounds = union_all([box(*item.bbox) for item in items if item.bbox]).bounds
    extent = pystac.Extent(pystac.SpatialExtent([list(bounds)]), pystac.TemporalExtent([[TAKEN, TAKEN]]))
    collection = pystac.Collection("demo", "Rendered aerial-like scenes with known truth", extent, title="Demo scenes", license="CC0-1.0")
    collection.add_items(items)
    catalog = pystac.Catalog("geopixel-demo", "Rendered imagery to try the system on", extra_fields={"demo:recipe": recipe})
    catalog.add_child(collection)
    catalog.normalize_hrefs(str(folder))
    catalog.save(pystac.CatalogType.SELF_CONTAINED)
