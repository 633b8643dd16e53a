"""Who looks at tiles and writes blocks: the interface, and the serial one, which is the specification. distributed/ has another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from geopixel.pipeline.outputs import write_block
from geopixel.pipeline.request import MapRequest, Run
from geopixel.pipeline.stored import load_run
from geopixel.pipeline.tiles import MAX_ATTEMPTS, assign_tiles, predict_tiles, see_tile
from geopixel.pipeline.work import Work
from geopixel.storage import Folder
from geopixel.types import Block, State, Tile, TileReceipt, Tiles

if TYPE_CHECKING:
    from geopixel.prediction import Predictor

Job = TypeVar("Job")
Result = TypeVar("Result")


class Runner(Protocol):
    """Spreads tiles and blocks over whatever there is."""

    max_attempts: int
    """A tile that was begun so often without a result is set aside as failed."""

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

    def note(self, stage: Literal["plan", "publish"], seconds: float) -> None:
        """Told how long a stage of the driver's own took, for whoever watches."""
        ...

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        """Writes every block; yields the id of each, in any order."""
        ...

    def stream(
        self,
        request: MapRequest,
        jobs: Sequence[Job],
        begin: Callable[[Job], tuple[Folder, Tiles | None]],
        finish: Callable[[Job, Work], Result],
        receive: Callable[[Job, int, TileReceipt], None],
    ) -> Iterator[Result]:
        """Many runs, one after the other or as many at a time as there is room for: begins each, looks at its tiles, finishes it; yields what finish
        gives, in any order. The model is loaded once for all of them.

        request: whose model and prompts all runs share. begin: the folder that holds the job's run by then, and the tiles of it to look at;
        None: there are none. finish: given what the tiles took. receive: told of every tile, whose it is and how many that job has. begin and finish
        may run anywhere, and again where a worker was lost.
        """
        ...

    def each(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        """Does all jobs; yields what they give, in their order."""
        ...


class SerialRunner:
    """One thing after the other, in this process."""

    dask_scheduler: Any = "synchronous"
    device = "cpu"

    def __init__(self, max_attempts: int = MAX_ATTEMPTS) -> None:
        self.max_attempts = max_attempts

    def look(self, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        yield from self._look(_load_predictor(run.request), run, folder, tiles)

    def note(self, stage: Literal["plan", "publish"], seconds: float) -> None:
        pass

    def write(self, run: Run, folder: Folder, blocks: Mapping[Block, Sequence[Tile]], states: Mapping[str, State]) -> Iterator[str]:
        for block, tiles in blocks.items():
            yield write_block(run, folder, block, tiles, states)

    def stream(
        self,
        request: MapRequest,
        jobs: Sequence[Job],
        begin: Callable[[Job], tuple[Folder, Tiles | None]],
        finish: Callable[[Job, Work], Result],
        receive: Callable[[Job, int, TileReceipt], None],
    ) -> Iterator[Result]:
        predictor = _load_predictor(request)
        for job in jobs:
            (folder, tiles), work = begin(job), Work()
            for receipt in () if tiles is None else self._look(predictor, load_run(folder), folder, tiles):
                work.add(receipt)
                receive(job, len(tiles or ()), receipt)
            yield finish(job, work)

    def each(self, work: Callable[[Job], Result], jobs: Sequence[Job]) -> Iterator[Result]:
        yield from map(work, jobs)

    def _look(self, predictor: Predictor, run: Run, folder: Folder, tiles: Sequence[Tile]) -> Iterator[TileReceipt]:
        assigned = assign_tiles(run, tiles)
        yield from predict_tiles(folder, predictor, (see_tile(run, tile, assigned) for tile in tiles), self.max_attempts)


def _load_predictor(request: MapRequest) -> Predictor:
    from geopixel.prediction import Predictor  # loads torch

    return Predictor.load(request.model, request.prompts, request.describe)
