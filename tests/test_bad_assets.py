"""Files that are damaged, cut short or gone: whoever reads them says so, the tiles that need them fail with the reason or are read again, every other tile
is what it is without the fault, and once the file is whole the map is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely

from geopixel.errors import ReadError
from geopixel.pipeline import SerialRunner, map_area
from geopixel.raster import read_scenes
from geopixel.types import Asset, Grid, Scene, Source
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet
from tests.misfortune import half_done, tiles_of

HERE = Grid("EPSG:32618", 10.0).geobox(50_000, -400_000, 512, 512)


@contextmanager
def damaged(path: Path, data: bytes | None) -> Iterator[None]:
    """data: what the file holds meanwhile; None: it is gone."""
    whole = path.read_bytes()
    try:
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        yield
    finally:
        path.write_bytes(whole)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


def blank(data: bytes) -> bytes:
    """As on a disk that lost blocks."""
    return data[: len(data) // 4] + bytes(len(data) - len(data) // 4)


WAYS: dict[str, tuple[Any, str]] = {
    "truncated": (cut, "got .* bytes, expected"),
    "corrupt": (blank, "[Dd]ecod"),
    "gone": (lambda data: None, "No such file"),
    "a page of a server": (lambda data: b"<html>The signature has expired</html>", "not recognized"),
}


@pytest.mark.parametrize("way", WAYS)
def test_tiles_of_a_bad_file_fail_with_the_reason_and_heal(catalog: Path, serial: Path, tmp_path: Path, way: str) -> None:
    """It was whole when the run was planned."""
    damage, why = WAYS[way]
    path = catalog.parent / "demo" / "demo-1000008" / "visual.tif"
    item = shapely.geometry.shape(json.loads(path.with_name("demo-1000008.json").read_text())["geometry"])
    tiles = gpd.read_parquet(serial / "plan.parquet").set_index("tile_id").loc[tiles_of(serial)].to_crs("EPSG:4326")
    inside, beside = tiles.index[tiles.within(item.buffer(1e-4))][:2], tiles.index[tiles.disjoint(item.buffer(1e-3))][:2]
    assert len(inside) == len(beside) == 2
    folder = half_done(serial, tmp_path / "map", {*inside, *beside})
    with damaged(path, damage(path.read_bytes())):
        summary = map_area(demo_request(catalog), folder, NANO, SerialRunner(), quiet)
    assert not summary.published
    coverage = gpd.read_parquet(tmp_path / "map" / "coverage.parquet").set_index("tile_id")
    reasons = coverage.loc[coverage["state"] == "failed", "reason"]
    assert set(reasons.index) <= set(inside)
    assert len(reasons) or way == "corrupt", "a block that is whole may be all that a tile needs"
    assert reasons.str.contains(f"{path}.*{why}").all()
    for file in (tmp_path / "map").glob("predictions/[!f]*/*.arrow"):
        assert file.read_bytes() == (serial / file.relative_to(tmp_path / "map")).read_bytes(), file.stem
    assert map_area(demo_request(catalog), folder, NANO, SerialRunner(), quiet, retry_failed=True).worked == len(reasons)
    assert_equal_maps(serial, tmp_path / "map")


FORMATS = {
    "deflate": ("GTiff", {"compress": "deflate"}),
    "lzw": ("GTiff", {"compress": "lzw"}),
    "zstd": ("GTiff", {"compress": "zstd"}),
    "jpeg": ("GTiff", {"compress": "jpeg", "photometric": "ycbcr"}),
    "webp": ("GTiff", {"compress": "webp"}),
    "JPEG": ("JPEG", {}),
    "PNG": ("PNG", {}),
    "JPEG 2000": ("JP2OpenJPEG", {"quality": 100, "reversible": "YES"}),
}


@pytest.mark.parametrize("damage", [cut, blank])
@pytest.mark.parametrize("kind", FORMATS)
def test_no_format_hides_that_a_file_is_broken_off(tmp_path: Path, kind: str, damage: Any) -> None:
    """A flipped bit in a block that has no checksum nobody can see; the rest of a file that is missing one must."""
    driver, options = FORMATS[kind]
    pixels = np.random.default_rng(0).integers(1, 250, (3, 512, 512)).astype(np.uint8)
    profile = {"width": 512, "height": 512, "count": 3, "dtype": "uint8", "crs": str(HERE.crs), "transform": HERE.transform}
    path = tmp_path / "picture"
    made = options if driver == "GTiff" else {}
    with rasterio.open(tmp_path / "made.tif", "w", driver="GTiff", tiled=True, blockxsize=256, blockysize=256, **profile, **made) as file:
        file.write(pixels)
    rasterio.shutil.copy(str(tmp_path / "made.tif"), str(path), driver=driver, **({"tiled": True} if driver == "GTiff" else {}), **options)
    scene = Scene("c", "2020-01-01", (Source("i", shapely.box(-180, -90, 180, 90), (Asset(str(path), (1, 2, 3)),)),))
    assert read_scenes([scene], HERE)[1].all()
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ReadError, match="cannot read .*picture"):
        read_scenes([scene], HERE)
