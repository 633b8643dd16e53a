"""Rendered scenes as labelled windows: their truth is known to the pixel. Knows the demo's renderer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from geopixel.demo import CLASSES, TRAINING_SEEDS, render_scene
from geopixel.training.augmentation import jitter, turn
from geopixel.training.examples import Example, Teacher

PIXEL_METRES = (0.25, 1.3)
"""Range of the ground sample distance that the mask decoder sees, after its resize: tiles of 640 pixels at 0.3 to 1 m come to 0.4 to 1.25 m; closer
ones show houses as large as drones do."""
SCENE_SIZE = 1536
SCENE_GSDS = (0.3, 0.4, 0.5, 0.6, 0.8)


def render_scenes(folder: Path, count: int, first_seed: int) -> list[Path]:
    """Scenes (SCENE_SIZE, SCENE_SIZE, 4) uint8, red, green, blue and class code, as .npy; those that are there are kept. Raises
    ValueError for less than one, and for seeds that are not for training."""
    if count < 1:
        raise ValueError(f"training wants at least one rendered scene, got {count}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first_seed + i}.npy" for i in range(count)]
    for path in paths:
        seed = int(path.stem)
        if seed not in TRAINING_SEEDS:
            raise ValueError(f"training draws its scenes from seeds {TRAINING_SEEDS}, got {seed}")
        if not path.exists():
            scene = render_scene(seed, size=SCENE_SIZE, gsd=SCENE_GSDS[seed % len(SCENE_GSDS)])
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, np.dstack([scene.rgb, scene.truth]))
            part.rename(path)
    return paths


def rendered_window(scenes: Sequence[Path], image_size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A window of one of the scenes: rgb (edge, edge, 3) and class codes (edge, edge), uint8; not turned nor jittered yet.
    image_size: edge that it will be shown at, for which its size is chosen."""
    path = scenes[int(rng.integers(len(scenes)))]
    scene = np.load(path, mmap_mode="r")
    metres = np.exp(rng.uniform(*np.log(PIXEL_METRES)))
    edge = int(np.clip(metres * image_size / SCENE_GSDS[int(path.stem) % len(SCENE_GSDS)], 0.75 * image_size, SCENE_SIZE))
    top, left = rng.integers(0, SCENE_SIZE - edge + 1, 2)
    window = np.array(scene[top : top + edge, left : left + edge])
    return window[..., :3], window[..., 3]


class RenderedExamples(Dataset[Example]):
    """Example i is the same wherever and whenever it is drawn: everything random follows from (seed, i)."""

    def __init__(self, scenes: Sequence[Path], teacher: Teacher, count: int, seed: int) -> None:
        self.scenes, self.teacher, self.count, self.seed = list(scenes), teacher, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, index))
        rgb, truth = turn(rng, *rendered_window(self.scenes, self.teacher.config.grounding.image_size, rng))
        return self.teacher.example(jitter(rng, rgb), truth, list(CLASSES), rng)
