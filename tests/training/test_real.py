"""Real imagery as lessons: chips lie where they were cut, masks are cleaned, indices are labels, and windows stay true to their labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from geopixel.training.augmentation import jitter, restyle, turn
from geopixel.training.real import (
    CHIP,
    DUBAI_KEPT_BACK,
    DUBAI_PALETTE,
    Ground,
    building_grounds,
    clean_dubai_mask,
    draw_window,
    dubai_grounds,
    label_by_indices,
    naip_grounds,
    read_picture,
)
from geopixel.training.words import CONCEPTS, OTHER, UNLABELLED

COLOURS = {name: tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour, name in DUBAI_PALETTE.items()}


def write_chips(folder: Path, places: dict[str, list[tuple[int, int]]]) -> None:
    """Chips of sites at (row, column): the red of a chip is its row, the green its column; the mask is its left half."""
    (folder / "img").mkdir()
    (folder / "msk").mkdir()
    rows = []
    for site, cells in places.items():
        for row, column in cells:
            name = f"{site}_{row}_{column}"
            Image.fromarray(np.full((CHIP, CHIP, 3), (20 * row, 20 * column, 0), np.uint8)).save(folder / "img" / f"{name}.jpg", quality=95)
            mask = np.zeros((CHIP, CHIP), np.uint8)
            mask[:, : CHIP // 2] = 255
            Image.fromarray(mask).save(folder / "msk" / f"{name}.png")
            west, north = 1000 + 38.2 * column, 5000 - 38.2 * row
            rows.append({"name": name, "site": site, "xmin": west, "ymin": north - 38.2, "xmax": west + 38.2, "ymax": north})
    with (folder / "index.csv").open("w") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_chips_are_put_together_as_they_lie_on_the_ground(tmp_path: Path) -> None:
    write_chips(tmp_path, {"here": [(0, 0), (0, 1), (1, 0), (5, 7)], "there": [(2, 2)]})
    grounds = building_grounds(tmp_path)
    assert [(ground.site, ground.truth.shape) for ground in grounds] == [("here", (512, 512)), ("here", (256, 256)), ("there", (256, 256))]
    first = grounds[0]
    assert [tuple(first.rgb[y, x, :2].round(-1)) for y, x in ((100, 100), (100, 400), (400, 100))] == [(0, 0), (0, 20), (20, 0)]
    assert (first.truth[256:, 256:] == UNLABELLED).all()
    assert (first.truth[:256, :128] == CONCEPTS["building"]).all()
    assert (first.truth[:256, 128:256] == OTHER).all()
    assert {ground.site for ground in building_grounds(tmp_path, ["here"])} == {"there"}
    with pytest.raises(ValueError, match="sites to leave out are of here, there, got 'hree'"):
        building_grounds(tmp_path, ["hree"])


def test_a_mask_that_jpeg_blurred_is_cleaned() -> None:
    """Against the mask before it was compressed: whatever keeps a label has the right one, and only pixels at borders lose theirs."""
    blocks = np.random.default_rng(0).integers(0, len(DUBAI_PALETTE), (12, 12)).repeat(20, axis=0).repeat(20, axis=1)
    drawn = np.array(list(COLOURS.values()), np.uint8)[blocks]
    true = np.array([UNLABELLED if name is None else CONCEPTS[name] for name in COLOURS], np.uint8)[blocks]
    stored = io.BytesIO()
    Image.fromarray(drawn).save(stored, "JPEG", quality=75)
    codes = clean_dubai_mask(np.array(Image.open(stored)), margin=2)
    kept = codes != UNLABELLED
    assert (codes[kept] == true[kept]).all()
    assert (np.asarray(codes).reshape(12, 20, 12, 20)[:, 5:15, :, 5:15] == true.reshape(12, 20, 12, 20)[:, 5:15, :, 5:15]).all()


def test_indices_label_water_and_vegetation_and_leave_what_is_between() -> None:
    pixels = {"water": (40, 60, 50, 10), "vegetation": (60, 80, 50, 160), OTHER: (150, 140, 120, 160), UNLABELLED: (100, 110, 90, 140)}
    bands = np.array(list(pixels.values()), np.uint8).T[:, None]
    assert label_by_indices(bands)[0].tolist() == [CONCEPTS["water"], CONCEPTS["vegetation"], OTHER, UNLABELLED]
    assert (label_by_indices(np.zeros((4, 2, 2), np.uint8)) == UNLABELLED).all()


@pytest.mark.parametrize("seed", range(8))
def test_a_window_and_its_labels_move_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 9, (300, 500)).astype(np.uint8)
    ground = Ground("here", np.dstack([truth * 20] * 3), truth, ("building",), (100, 400))
    rgb, codes = turn(rng, *draw_window(ground, rng, zoom=2))
    assert (rgb[..., 0] == codes * 20).all()
    assert all(40 <= edge <= 240 for edge in codes.shape)


def test_another_style_is_the_same_place() -> None:
    """Edges stay where they are, whatever becomes of the colours."""
    rgb = np.zeros((80, 80, 3), np.uint8)
    rgb[:, :40], rgb[:, 40:] = (60, 90, 60), (190, 160, 150)
    styles = [restyle(np.random.default_rng(seed), rgb) for seed in range(30)] + [jitter(np.random.default_rng(seed), rgb) for seed in range(30)]
    for style in styles:
        assert style.shape == rgb.shape
        assert style.dtype == np.uint8
        steps = np.abs(np.diff(style.astype(int).mean(axis=(0, 2))))
        assert abs(int(steps.argmax()) - 39) <= 2
    assert len({style.tobytes() for style in styles}) == len(styles)


def test_what_is_kept_back_is_whole_tiles_and_is_never_trained_on(shared: Path) -> None:
    trained, kept = (dubai_grounds(shared / "training" / "dubai", kept_back=back) for back in (False, True))
    assert {ground.site for ground in kept} == {f"dubai {tile}" for tile in DUBAI_KEPT_BACK}
    assert not {ground.site for ground in kept} & {ground.site for ground in trained}
    assert len(trained) + len(kept) == 63
    for code in (CONCEPTS[name] for name in DUBAI_PALETTE.values() if name):
        assert any((ground.truth == code).any() for ground in kept)
    west, east = (naip_grounds(shared / "imagery" / "naip-north-dakota", kept_back=back) for back in (False, True))
    assert len(west) == len(east) == 5
    assert all(one.truth.shape[1] + other.truth.shape[1] == 934 for one, other in zip(west, east, strict=True))


def test_the_sites_of_the_real_chips_fit_together(shared: Path) -> None:
    """Neighbours agree where they meet: a pixel beside the seam differs from its neighbour no more than elsewhere."""
    folder = shared / "training" / "buildings"
    (banepa,) = (ground for ground in building_grounds(folder, ["zanzibar", "nepal2"]))
    assert banepa.truth.shape == (16 * CHIP, 12 * CHIP)
    assert not (banepa.truth == UNLABELLED).any()
    assert (banepa.rgb[:CHIP, CHIP : 2 * CHIP] == read_picture(folder / "img" / "banepa_3560_3756.jpg")).all()
    seam = np.abs(banepa.rgb[:, CHIP].astype(int) - banepa.rgb[:, CHIP - 1]).mean()
    inside = np.abs(banepa.rgb[:, CHIP + 50].astype(int) - banepa.rgb[:, CHIP + 49]).mean()
    assert seam < 2 * inside
