"""Laws: a feature is drawn where the thing is in the imagery, to the pixel, in whatever CRS it comes; the legend counts; any area fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from geopixel.publish.backdrop import COLOURS, FAILED, MARGIN, NO_IMAGERY, ground_text, metres_per_unit, read_backdrop, share_text
from geopixel.publish.quicklook import GAP, MAP, PANEL, QUICKLOOK, draw_quicklook
from geopixel.storage import Folder
from geopixel.types import Scene
from tests.publish.conftest import AREA, FAILED_TILE, GRID, HOUSE, NORTH, WEST, YARD, features_of


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def picture(folder: Folder) -> np.ndarray:
    with Image.open(Path(folder.url, QUICKLOOK)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(pixels: np.ndarray, colour: str, tolerance: int = 40) -> np.ndarray:
    return (np.abs(pixels - rgb(colour)) <= tolerance).all(axis=-1)


def test_it_draws_to_the_pixel(tmp_path: Path, scene: Scene) -> None:
    folder = Folder(str(tmp_path / "run"))
    prompts = ["house", "yard", "a prompt so long that no legend could ever hold all of it"]
    backdrop = read_backdrop([scene], GRID, AREA)
    features = features_of([HOUSE, YARD], ["house", "yard"])
    draw_quicklook(folder, backdrop, area=AREA, features=features, prompts=prompts, failed=[FAILED_TILE], scenes=[scene], model="nano")
    seen = picture(folder)
    per_metre = min(MAP[0] / (512 * (1 + 2 * MARGIN)), MAP[1] / (384 + 512 * 2 * MARGIN))
    width, height = round(512 * (1 + 2 * MARGIN) * per_metre), round((384 + 512 * 2 * MARGIN) * per_metre)
    assert seen.shape[:2] == (height + 2 * GAP, width + PANEL + 3 * GAP)

    def at(east: float, south: float) -> tuple[int, int]:
        return GAP + round((south + 512 * MARGIN) * per_metre), GAP + round((east + 512 * MARGIN) * per_metre)

    for east, south in ((100, 175), (180, 175), (140, 150), (140, 200)):  # the middles of the four walls
        row, column = at(east, south)
        assert near(seen[row - 2 : row + 3, column - 2 : column + 3], COLOURS[0], 60).any()
    for east, south in ((250, 260), (330, 260), (280, 260), (300, 260)):  # outer and inner walls of the yard
        row, column = at(east, south)
        assert near(seen[row - 2 : row + 3, column - 2 : column + 3], COLOURS[1], 60).any()
    # The house itself is dark blue right up to its line, under a breath of its colour, the ground green from the other side on.
    tinted = "#" + bytes(round(0.7 * ground + 0.3 * ink) for ground, ink in zip((0, 0, 90), rgb(COLOURS[0]), strict=True)).hex()
    for inside, outside in (((103, 175), (97, 175)), ((177, 175), (183, 175)), ((140, 153), (140, 147)), ((140, 197), (140, 203))):
        assert near(seen[at(*inside)], tinted, 10)
        assert near(seen[at(*outside)], "#007800", 10)
    assert near(seen[at(290, 260)], "#007800", 10), "a hole is not filled"
    assert near(seen[at(450, 100)], NO_IMAGERY, 5), "what no file shows is grey, also where a file cannot be read"
    assert seen[at(-5, 100)][1] < 80, "around the area it is darker"
    hatched = near(seen[slice(*sorted((at(260, 10)[0], at(260, 200)[0]))), slice(at(260, 10)[1], at(370, 10)[1])], FAILED, 60)
    assert 0.1 < hatched.mean() < 0.5
    assert not near(seen[slice(at(10, 10)[0], at(10, 140)[0]), slice(at(10, 10)[1], at(240, 10)[1])], FAILED, 60).any()
    legend = seen[:, GAP + width + GAP :]
    assert all(near(legend, colour).any() for colour in (*COLOURS[:3], FAILED, NO_IMAGERY))


@pytest.mark.parametrize(("width", "height", "prompts"), [(10, 4000, 1), (4000, 10, 40), (500, 500, 40)])
def test_any_area_and_any_number_of_prompts_fit(tmp_path: Path, scene: Scene, width: int, height: int, prompts: int) -> None:
    folder = Folder(str(tmp_path / "run"))
    area = shapely.box(WEST, NORTH - height, WEST + width, NORTH)
    names = [f"thing {number}" for number in range(prompts)]
    backdrop = read_backdrop([scene], GRID, area)
    assert max(backdrop.geobox.shape) <= 2400
    draw_quicklook(folder, backdrop, area=area, features=features_of([], []), prompts=names, failed=[], scenes=[scene], model="nano")
    high, wide, _ = picture(folder).shape
    assert wide <= 1920
    assert high <= 1080


def test_ground_in_words() -> None:
    said = [ground_text(m2).replace("\u00b2", "2") for m2 in (0, 925.4, 30_816, 999_000, 1.5e6, 3.2e9)]
    assert said == ["0 m2", "925 m2", "3.08 ha", "99.9 ha", "1.5 km2", "3,200 km2"]
    assert [share_text(part) for part in (0, 0.0004, 0.055, 1)] == ["0.0 %", "< 0.1 %", "5.5 %", "100.0 %"]


def test_a_metre_of_web_mercator_is_shorter_in_nepal() -> None:
    across, down = metres_per_unit("EPSG:3857", 9_520_000, 3_200_000, 1000)
    assert across == pytest.approx(884, abs=6)  # 1000 * cos(27.6 degrees), but for the flattening
    assert down == pytest.approx(across, rel=0.01)
