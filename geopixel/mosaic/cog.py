"""A prompt of a finished masks.zarr as one Cloud-Optimised GeoTIFF, for those who read no Zarr. Memory does not grow with the area."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import zarr
from affine import Affine
from rasterio.windows import Window

from geopixel.mosaic.blend import NONE
from geopixel.mosaic.store import MASKS
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE

_CACHE = 256
"""Megabytes of GDAL's block cache, which else is a share of the machine's memory."""
_TILE = 512


def cog_path(index: int, prompt: str) -> str:
    """Where the COG of a prompt lies in the run folder; the index keeps apart prompts that differ in their signs alone."""
    return f"cog/{index}-{re.sub(r'[^a-z0-9]+', '-', prompt.casefold()).strip('-')[:40]}.tif"


def write_cog(folder: Folder, index: int) -> str:
    """Writes the mask of the prompt at index: one uint8 band, 1 present, 0 absent, nodata NONE, overviews by majority. Returns its path.

    It is put together in a temporary folder of this machine, block by block, and then stored as a whole.
    """
    root: Any = zarr.open_group(folder.zarr(MASKS), mode="r")
    mask, prompt = root["mask"], str(root["prompt"][index])
    _, height, width = mask.shape
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NONE, "height": height, "width": width, "crs": _crs(root)}
    tiled = {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE, "compress": "deflate", "zlevel": 1, "sparse_ok": True, "bigtiff": "if_safer"}
    with TemporaryDirectory() as scratch, rasterio.Env(GDAL_CACHEMAX=_CACHE):
        plain, cog = Path(scratch, "plain.tif"), Path(scratch, "cog.tif")
        with rasterio.open(plain, "w", **profile, **tiled, transform=Affine(*mask.attrs["spatial:transform"])) as target:
            target.set_band_description(1, prompt)
            for row in range(0, height, BLOCK_SIZE):
                for column in range(0, width, BLOCK_SIZE):
                    pixels = mask[index, row : row + BLOCK_SIZE, column : column + BLOCK_SIZE]
                    if (pixels != NONE).any():
                        target.write(np.asarray(pixels), 1, window=Window(column, row, *pixels.shape[::-1]))
        rasterio.shutil.copy(plain, cog, driver="COG", compress="deflate", blocksize=_TILE, overview_resampling="mode", sparse_ok=True, bigtiff="if_safer")
        path = cog_path(index, prompt)
        folder.put(path, cog)
    return path


def _crs(root: Any) -> str:
    return root.attrs.get("proj:code") or root.attrs["proj:wkt2"]
