"""Blends the stored predictions of tiles into blocks of the output raster and writes a block as whole Zarr v3 shards, overviews
included. A block is made from the tiles that touch it and from nothing else, so any task can make it, in any order, again and again
with equal bytes. Knows nothing of how a prediction came about, nor of polygons."""

from geopixel.mosaic.blend import NONE, BlockMosaic, blend, blocks_of, mosaic_block, pieces_of, status_and_scene, tile_weights
from geopixel.mosaic.cog import cog_path, write_cog
from geopixel.mosaic.store import MASKS, OVERVIEWS, create_mosaic, digest_block, unlike_block, write_block

__all__ = [
    "MASKS",
    "NONE",
    "OVERVIEWS",
    "BlockMosaic",
    "blend",
    "blocks_of",
    "cog_path",
    "create_mosaic",
    "digest_block",
    "mosaic_block",
    "pieces_of",
    "status_and_scene",
    "tile_weights",
    "unlike_block",
    "write_block",
    "write_cog",
]
