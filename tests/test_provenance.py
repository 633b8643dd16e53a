"""Law: what is said of a pixel is said by the tile that owns it; and an edge is where an answer ends, whichever block the end is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely

from geopixel import ledger, mosaic
from geopixel.pipeline import load_run
from geopixel.provenance import Provenance, trace_provenance
from geopixel.storage import Folder
from geopixel.types import BLOCK_SIZE, CLOUDED, HALO, Block, Grid, Tile, TilePrediction

GRID = Grid("EPSG:32645", 0.5)
EVERYWHERE = shapely.box(-1e8, -1e8, 1e8, 1e8)


def see(tile: Tile, scene: int, score: float) -> TilePrediction:
    edge = tile.size + 2 * HALO
    return TilePrediction(tile.id, "ok", np.ones((2, 8, 8), np.int8), np.full((edge, edge), scene, np.uint16), np.array([score, np.nan], np.float32))


def trace(column: int, row: int, predictions: dict[Tile, TilePrediction], area: shapely.Geometry = EVERYWHERE) -> Provenance:
    return trace_provenance(Block(GRID, column, row), list(predictions), {tile.id: one for tile, one in predictions.items()}, prompts=2, area=area)


def test_every_cell_is_told_of_by_the_tile_that_owns_it() -> None:
    """Tiles of two sizes, one of which looked past the block's corner."""
    large, small, beyond = Tile(GRID, 1024, 0, 0), Tile(GRID, 512, 2, 1), Tile(GRID, 512, -1, -1)
    told = trace(0, 0, {large: see(large, 3, 0.75), small: see(small, 5, 0.25), beyond: see(beyond, 7, 1.0)})
    assert told.scores.shape == (2, 8, 8)
    assert (told.scores[0, :2, :2] == 0.75).all()
    assert told.scores[0, 1, 2] == 0.25
    assert np.isnan(told.scores).sum() == 128 - 5


def test_answers_end_where_the_next_pixel_has_none() -> None:
    """At the rim of the block only where the next block has none; at clouds; at the area."""
    tiles = {tile: see(tile, 0, 1.0) for tile in (Tile(GRID, 4096, 0, 0), Tile(GRID, 4096, 1, 0))}
    (west, picture), (east, _) = tiles.items()
    picture.scene[HALO + 100, HALO + 200] = CLOUDED  # type: ignore[index]
    told = trace(0, 0, tiles)
    rows, columns = np.nonzero(told.edge[1:-1, 1:-1])
    assert {(row + 1, column + 1) for row, column in zip(rows.tolist(), columns.tolist(), strict=True)} == {(99, 200), (101, 200), (100, 199), (100, 201)}
    assert told.edge[0].all()
    assert told.edge[-1].all()
    assert told.edge[:, 0].all()
    assert not told.edge[1:-1, -1].any()
    assert trace(0, 0, {west: picture}).edge[:, -1].all()
    assert trace(1, 0, {east: tiles[east]}).edge[:, 0].all()
    inside = trace(0, 0, tiles, shapely.box(0, -GRID.resolution * BLOCK_SIZE, 1000 * GRID.resolution, 0)).edge
    assert inside[1:-1, 999].all()
    assert not inside[1:-1, 500:999].any()


@pytest.mark.parametrize("index", [0, -1])
def test_it_agrees_with_the_mosaic(serial: Path, index: int) -> None:
    """An edge is beside NONE, and what has an answer has a scene."""
    folder = Folder(str(serial))
    run, tiles = load_run(folder), ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    block, near = list(mosaic.blocks_of(tiles).items())[index]
    predictions = {tile.id: ledger.load_prediction(folder, tile.id, states[tile.id]) for tile in near if tile.decided is None}
    told = trace_provenance(block, near, predictions, prompts=2, area=run.area)
    blended = mosaic.mosaic_block(block, near, lambda tile: predictions[tile.id], prompts=2, threshold=0.5, area=run.area)
    silent = blended.mask[0] == mosaic.NONE
    assert (blended.scene[~silent] < CLOUDED).all()
    beside = silent[:-2, 1:-1] | silent[2:, 1:-1] | silent[1:-1, :-2] | silent[1:-1, 2:]
    np.testing.assert_array_equal(told.edge[1:-1, 1:-1], beside)
