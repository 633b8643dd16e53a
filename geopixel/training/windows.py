"""Labelled windows of rendered scenes and real imagery, mixed, and the examples that they make. Knows no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from geopixel.demo import CLASSES
from geopixel.training.augmentation import jitter, paste, restyle, scatter, turn
from geopixel.training.examples import Example, Teacher
from geopixel.training.real import Ground, draw_window
from geopixel.training.referring import LARGEST, objects_of, one_thing, references
from geopixel.training.rendered import rendered_window
from geopixel.training.words import CONCEPTS

MIXTURE = {"rendered": 0.36, "buildings": 0.4, "dubai": 0.19, "naip": 0.05}
"""Share of the examples that each kind of data gives."""
SEARCHED = 4
"""Places looked at, at most, for a window that should be full, of which the fullest is taken, or for one in which something is the largest."""
SOUGHT = ("building", "road", "water")
SOUGHT_SHARE = 0.5
"""What rendered windows should be full of, one of these each, and their share that is searched for."""
FULLEST = 0.6
PASTED = 0.4
"""Shares of the windows of buildings that are searched for, and that are made denser."""
SCATTERED = 0.8
SCATTERED_MOST = 3
"""Share of the rendered windows and of those of buildings over which more buildings are laid, and how many at most."""
RESTYLED = 0.8
"""Share of the windows of real imagery that are restyled."""

LARGEST_SOUGHT = 0.8
"""Share of the windows with phrases that are searched for one in which something is the largest: without, a third has it."""

PHRASES_ASKED = 5
"""Single objects, or parts of the picture, that an example asks for at most."""

ZOOM = 2
"""The first stage sees windows of half the edge at half the size: the same pixels, four times as many places for the same computing."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Labelled windows of all kinds of data, mixed. Example i is the same wherever and whenever it is drawn: everything random follows from (seed, i)."""

    scenes: list[Path]
    grounds: Mapping[str, list[Ground]]
    """By kind, the names of MIXTURE but for rendered."""
    teacher: Teacher
    seed: int

    def example(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, index))
        return self.teacher.example(*self.draw(rng, 1), rng)

    def referring(self, index: int) -> Example:
        """An example that also asks for single objects, and for those in a part of the picture."""
        rng = np.random.default_rng((self.seed, index))
        return self.teacher.example(*self.draw_with_largest(rng, 1), rng, phrases=PHRASES_ASKED)

    def picture(self, index: int) -> Example:
        """Without words, zoomed in."""
        rng = np.random.default_rng((self.seed, index))
        return self.teacher.picture(*self.draw_with_largest(rng, ZOOM), self.teacher.config.grounding.image_size // ZOOM, rng, PHRASES_ASKED)

    def draw(self, rng: np.random.Generator, zoom: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """rgb (height, width, 3), codes (height, width), and what the codes tell."""
        kinds = [kind for kind in MIXTURE if kind == "rendered" or self.grounds.get(kind)]
        weights = np.array([MIXTURE[kind] for kind in kinds])
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        if kind == "rendered":
            edge = self.teacher.config.grounding.image_size // zoom
            rgb, truth = scattered(self.fuller(rng, zoom), partial(rendered_window, self.scenes, edge, rng), rng)
            known: tuple[str, ...] = tuple(CLASSES)
        else:
            ground = draw_ground(self.grounds[kind], rng)
            rgb, truth = self.settled(ground, rng, zoom) if kind == "buildings" else draw_window(ground, rng, zoom)
            rgb = restyle(rng, rgb) if rng.random() < RESTYLED else rgb
            known = ground.known
        rgb, truth = turn(rng, rgb, truth)
        return jitter(rng, np.ascontiguousarray(rgb)), truth, known

    def draw_with_largest(self, rng: np.random.Generator, zoom: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """A window as draw gives it, often one in which something is the largest."""
        window = self.draw(rng, zoom)
        for _ in range(SEARCHED - 1 if rng.random() < LARGEST_SOUGHT else 0):
            if any(each.reference.atoms == (LARGEST,) for each in references(*window, rng)):
                break
            window = self.draw(rng, zoom)
        return window

    def fuller(self, rng: np.random.Generator, zoom: int) -> tuple[np.ndarray, np.ndarray]:
        """A window of a rendered scene, often the one of several with most of a concept: few show nothing but a lake, as tiles do. rgb (height, width, 3),
        codes (height, width)"""
        code = CONCEPTS[SOUGHT[rng.integers(len(SOUGHT))]]
        return fullest(partial(rendered_window, self.scenes, self.teacher.config.grounding.image_size // zoom, rng), code, SOUGHT_SHARE, rng)

    def settled(self, ground: Ground, rng: np.random.Generator, zoom: int) -> tuple[np.ndarray, np.ndarray]:
        """A window of ground with more buildings than it has, of all sizes. rgb (height, width, 3), codes (height, width)"""
        return scattered(self.denser(ground, rng, zoom), lambda: draw_window(draw_ground(self.grounds["buildings"], rng), rng, zoom), rng)

    def denser(self, ground: Ground, rng: np.random.Generator, zoom: int) -> tuple[np.ndarray, np.ndarray]:
        """A window of ground with few buildings: often the fullest of several, often with those of another place, as dense as towns are that no site
        shows. rgb (height, width, 3), codes (height, width)"""
        code = CONCEPTS["building"]

        def draw(ground: Ground) -> tuple[np.ndarray, np.ndarray]:
            return fullest(partial(draw_window, ground, rng, zoom), code, FULLEST, rng)

        window = draw(ground)
        if rng.random() < PASTED:
            return paste(*window, *turn(rng, *draw(draw_ground(self.grounds["buildings"], rng))), code)
        return window


def fullest(draw: Callable[[], tuple[np.ndarray, np.ndarray]], code: int, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One window (rgb, codes); of this share of the cases, of SEARCHED the one with most of a code."""
    drawn = [draw() for _ in range(SEARCHED if rng.random() < share else 1)]
    return max(drawn, key=lambda window: float((window[1] == code).mean()))


def scattered(
    window: tuple[np.ndarray, np.ndarray], draw: Callable[[], tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A window (rgb, codes), often with buildings of another one, which draw gives, laid over it larger or smaller than they are there. Only of those
    that stand alone: of others labels do not tell where one ends."""
    if rng.random() >= SCATTERED:
        return window
    rgb, truth = draw()
    objects = objects_of(truth, "building")
    alone = (objects[number] for number in rng.permutation(len(objects)) if one_thing(objects[number]))
    return scatter(rng, *window, rgb, islice(alone, int(rng.integers(1, SCATTERED_MOST + 1))), CONCEPTS["building"])


def draw_ground(grounds: list[Ground], rng: np.random.Generator) -> Ground:
    """Every site is as likely as the others, and within a site every pixel."""
    sites = sorted({ground.site for ground in grounds})
    site = sites[rng.integers(len(sites))]
    of_site = [ground for ground in grounds if ground.site == site]
    areas = np.array([ground.truth.size for ground in of_site], float)
    return of_site[rng.choice(len(of_site), p=areas / areas.sum())]
