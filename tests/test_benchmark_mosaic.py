"""The benchmark of the mosaic itself, with one prompt: it measures what it says and notices what is not the same."""

from __future__ import annotations

import numpy as np
import pytest

from geopixel import mosaic as library
from geopixel.storage import Folder
from geopixel.types import HALO, Block
from tests.benchmarks import mosaic


@pytest.mark.slow
def test_the_mosaic_against_the_usual_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mosaic, "ROUNDS", 1)
    code = mosaic.main(["--prompts", "1", "--check"])
    printed = capsys.readouterr()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.out.splitlines() if line.startswith("|")]
    rows = {row[0].split(":")[0].split(",")[0]: row for row in lines[2:]}
    assert len(rows) == 8 - 1  # two of them on confidence
    assert rows["weights"][3] == "0"
    seams = rows["step at seams over the background"]
    assert float(seams[1].rstrip("x")) > 5
    assert float(seams[2].rstrip("x")) <= 1.5
    assert 0.2 < float(rows["peak memory of a block task"][3].split()[0]) < 1.5
    assert float(rows["the same in a map of 64 x 64 blocks"][3].rstrip("x")) == pytest.approx(1, abs=0.05)
    missed = [row[0] for row in lines[2:] if row[-1] == "no"]
    assert [line.split(": ", 1)[1].rsplit(": ", 1)[0] for line in printed.err.splitlines() if line.startswith("missed")] == missed
    assert code == (1 if missed else 0)


def test_a_crop_is_its_own_tiles_answer_and_its_steps_are_at_seams() -> None:
    tiles = mosaic.tiles_of_all_sizes()
    said = mosaic.predictions_of(tiles, 1)
    cropped, blended = mosaic.halo_crop(tiles, said), mosaic.blended(tiles, said)
    assert np.isfinite(cropped).all()
    middle = np.s_[2048 + HALO : -HALO, 2048 + HALO : -HALO]  # of the largest tile, where no other has a say
    np.testing.assert_array_equal(cropped[middle], blended[middle])
    at_seam, inside = np.zeros((2, *blended.shape))
    at_seam[:, 2048:] = inside[3000:, 3500:] = inside[0, 0] = 1
    assert mosaic.step_at_seams(at_seam + inside / 100, tiles) > 1000
    assert mosaic.step_at_seams(inside, tiles) == 0


def test_a_block_that_is_written_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = mosaic.tiles_of_all_sizes()[-1:]
    made = library.mosaic_block(mosaic.BLOCK, tiles, lambda tile: mosaic.predictions_of([tile], 1)[tile.id], prompts=1, threshold=0.5, area=mosaic.EVERYWHERE)
    monkeypatch.setattr(mosaic, "ROUNDS", 0)
    write = library.write_block

    def forgetful(folder: Folder, block: Block, made: library.BlockMosaic) -> None:
        write(folder, block, library.BlockMosaic(made.mask, made.confidence, made.status * 0 + 1, made.scene))

    monkeypatch.setattr(library, "write_block", forgetful)
    with pytest.raises(AssertionError, match="status written with zarrs"):
        mosaic.time_write(made)
