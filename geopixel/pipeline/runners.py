"""Who looks at tiles and writes blocks: the interface, and the serial one, which is the specification. distributed/ has another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

from geopixel.pipeline.outputs import write_block
from geopixel.pipeline.request import Run
from geopixel.pipeline.tiles import MAX_ATTEMPTS, assign_tiles, predict_tiles, see_tile
from geopixel.storage import Folder
from geopixel.types import Block, State, Tile, TileReceipt


class Runner(Protocol):
    """Spreads tiles and blocks over whatever there is."""

    @property
    def dask_scheduler(self) -> Any:
        """For the survey; None: threads."""
        ...

    @property
    def device(self) -> str:
        """What the model runs on: cuda or cpu."""
        ...

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        """Reads, predicts and stores every tile; yields a receipt for each, in any order."""
        ...

    def note(self, run: Run, stage: Literal["plan", "publish"], seconds: float) -> None:
        """Told how long a stage of the driver's own took, for whoever watches."""
        ...

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        """Writes every block; yields the id of each, in any order."""
        ...


class SerialRunner:
    """One thing after the other, in this process."""

    dask_scheduler: Any = "synchronous"
    device = "cpu"

    def __init__(self, max_attempts: int = MAX_ATTEMPTS) -> None:
        self.max_attempts = max_attempts

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        from geopixel.prediction import Predictor

        predictor = Predictor.load(run.request.model, run.request.prompts, run.request.describe)
        assigned = assign_tiles(run, tiles)
        yield from predict_tiles(folder, predictor, (see_tile(run, tile, assigned) for tile in tiles), self.max_attempts)

    def note(self, run: Run, stage: Literal["plan", "publish"], seconds: float) -> None:
        pass

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        for block, tiles in blocks.items():
            yield write_block(run, folder, block, tiles, states)
