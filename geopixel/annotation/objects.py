"""The labelled objects of one picture, measured: how much of each is seen, where it lies, what colours it has, how far it is from others. Knows
pixels and classes; nothing of files, places on Earth or words."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt

from geopixel.annotation.colours import COLOURS, colour_shares

SPECK = 24
"""Pixels: of an object that shows less, nobody can tell what it is."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneObject:
    """What is seen of one labelled object."""

    category: str
    left: int
    top: int
    """Of the mask in the picture, in pixels."""
    mask: np.ndarray
    """(height, width) bool, True where the object is seen; tight: its first and last row and column have a True."""
    full_area: float
    """Pixels that it would have were nothing of it beyond the frame or covered by nodata; never less than are seen."""

    def __post_init__(self) -> None:
        if self.mask.dtype != bool or self.mask.ndim != 2 or not self.mask.any():
            raise ValueError(f"a mask is (height, width) bool with a True, got {self.mask.dtype} {self.mask.shape} for a {self.category}")
        if self.full_area < self.area:
            raise ValueError(f"an object shows no more than all of it, got {self.area} of {self.full_area} pixels for a {self.category}")

    @property
    def area(self) -> int:
        """Pixels that are seen."""
        return int(self.mask.sum())

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture."""
        height, width = self.mask.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def cut_object(category: str, mask: np.ndarray, full_area: float | None = None) -> SceneObject:
    """An object from its mask in the whole picture, (height, width) bool. full_area None: nothing of it is hidden. Raises ValueError for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        raise ValueError(f"a mask needs a pixel, got none for a {category}")
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy()
    return SceneObject(category, int(columns[0]), int(rows[0]), part, float(part.sum()) if full_area is None else max(float(full_area), float(part.sum())))


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture and all labelled objects that are seen in it. The measures below are made when first asked for; (n,) is by object."""

    rgb: np.ndarray
    """(height, width, 3) uint8."""
    objects: tuple[SceneObject, ...]
    memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)
    """Of what others work out of this frame again and again."""

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.rgb.shape[0], self.rgb.shape[1]

    @cached_property
    def categories(self) -> np.ndarray:
        """(n,) str"""
        return np.array([each.category for each in self.objects], dtype=object)

    @cached_property
    def area(self) -> np.ndarray:
        """(n,) pixels that are seen."""
        return np.array([each.area for each in self.objects], float)

    @cached_property
    def full_area(self) -> np.ndarray:
        """(n,) pixels with what is hidden."""
        return np.array([each.full_area for each in self.objects], float)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(n, 4) left, top, right, bottom in pixels; the last two lie behind the last pixel."""
        return np.array([(o.left, o.top, o.left + o.mask.shape[1], o.top + o.mask.shape[0]) for o in self.objects], float).reshape(-1, 4)

    @cached_property
    def centres(self) -> np.ndarray:
        """(n, 2) x, y of the centres of gravity as shares of the frame, 0 left or top."""
        height, width = self.shape
        means = [np.array(np.nonzero(each.mask)).mean(axis=1) + (each.top + 0.5, each.left + 0.5) for each in self.objects]
        return np.array([(x / width, y / height) for y, x in means]).reshape(-1, 2)

    @cached_property
    def spans(self) -> np.ndarray:
        """(n, 2) width and height of the boxes as shares of the frame."""
        height, width = self.shape
        return (self.boxes[:, 2:] - self.boxes[:, :2]) / (width, height)

    @cached_property
    def colours(self) -> np.ndarray:
        """(n, 2, len(COLOURS)) share of an object's pixels that have each name, and of those that may have it."""
        return np.array([colour_shares(self.rgb[each.window][each.mask]) for each in self.objects]).reshape(-1, 2, len(COLOURS))

    def of(self, category: str) -> np.ndarray:
        """Indexes of its objects."""
        return np.flatnonzero(self.categories == category)

    def mask(self, members: Iterable[int]) -> np.ndarray:
        """(height, width) bool: what is seen of any of these objects."""
        canvas = np.zeros(self.shape, bool)
        for index in members:
            canvas[self.objects[index].window] |= self.objects[index].mask
        return canvas

    def distances(self, category: str) -> np.ndarray:
        """(n,) share of the frame's longer side between an object and the nearest of a category, 0 where they touch; infinite where there is none."""
        if ("distances", category) not in self.memory:
            members = self.of(category)
            found = np.full(len(self.objects), np.inf)
            if len(members):
                gap = np.maximum(distance_transform_edt(~self.mask(members)) - 1, 0) / max(self.shape)
                found = np.array([gap[each.window][each.mask].min() for each in self.objects])
            self.memory["distances", category] = found
        return np.asarray(self.memory["distances", category])

    def joined(self, groups: Iterable[Iterable[int]], category: str) -> Frame:
        """The same picture with these groups of objects of a category in place of that category's single ones: they come first, in order."""
        merged = [cut_object(category, self.mask(group), float(self.full_area[list(group)].sum())) for group in map(list, groups)]
        return replace(self, objects=(*merged, *(each for each in self.objects if each.category != category)), memory={})
