"""Which of the scenes that were found are worth reading: for every cell of the ground the first few in the order of a rule. A pure function of
footprints and four figures; the order in which a catalog lists them has no say.

The rules, each with ties broken by day (newest first), collection and id:
  newest       the later day first.
  least-cloud  less cloud first; scenes that do not say come after all that do.
  best         the smallest sum of WEIGHTS first: cloud, age, pixel size and what the scene leaves uncovered of the cell.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import Literal

import numpy as np
import shapely
from shapely import Geometry

Rule = Literal["newest", "least-cloud", "best"]

CELL = 0.1
"""Degrees along an edge of a cell, counted from longitude and latitude 0: about 11 km. The same ground is the same cell whatever the area."""
CELLS_AT_ONCE = 4096
"""Cells that are decided together: bounds the pairs of cells and scenes in memory."""
WEIGHTS = {"cloud": 1.0, "year": 0.2, "doubling": 0.25, "uncovered": 0.5}
"""Of the rule best: a sky full of cloud weighs as much as five years of age, as pixels sixteen times the edge, or twice as much as a cell left empty."""
UNSAID_CLOUD, UNSAID_METRES = 0.5, 10.0
"""What the rule best takes a scene for that does not say its cloud cover (0..1) or its pixel size."""
SLIVER = 1e-10
"""Square degrees, about a square metre: ground too small to ask for a further scene."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What the choice knows of an item."""

    id: str
    collection: str
    day: dt.date
    footprint: Geometry
    """EPSG:4326."""
    cloud: float | None = None
    """Percent."""
    metres: float | None = None
    """Edge of a pixel."""

    @property
    def scene(self) -> tuple[str, dt.date]:
        """Items of one collection and day are one scene: where they overlap they show the same."""
        return self.collection, self.day


def order(candidate: Candidate, rule: Rule) -> tuple[float | str, ...]:
    """The sort key of a rule wherever no cell is at hand: smaller is better. No two different items have the same."""
    newest = (-candidate.day.toordinal(), candidate.collection, candidate.id)
    if rule == "newest":
        return newest
    if rule == "least-cloud":
        return (101.0 if candidate.cloud is None else candidate.cloud, *newest)
    return (penalty(candidate), *newest)


def penalty(candidate: Candidate) -> float:
    """Of the rule best, without the cell's share. Years count from year 1: only differences matter."""
    cloud = UNSAID_CLOUD if candidate.cloud is None else candidate.cloud / 100
    doublings = log2(candidate.metres if candidate.metres and candidate.metres > 0 else UNSAID_METRES)
    return WEIGHTS["cloud"] * cloud - WEIGHTS["year"] * candidate.day.toordinal() / 365.25 + WEIGHTS["doubling"] * doublings


def choose(candidates: Sequence[Candidate], area: Geometry, rule: Rule, per_cell: int | None) -> list[int]:
    """Indexes of the candidates to read, best first by order().

    In every cell of the area, candidates are taken in the order of the rule until each point of the ground is in per_cell different scenes or no
    candidate is left: ground that any candidate covers is covered, by min(per_cell, how many scenes there are). An item that adds no ground
    to a cell is not taken for it. per_cell None: all. Choosing again among the chosen chooses them all.
    """
    if per_cell is not None and per_cell < 1:
        raise ValueError(f"per_cell must be 1 or more scenes, got {per_cell}")
    ranked = sorted(range(len(candidates)), key=lambda index: order(candidates[index], rule))
    if per_cell is None or not ranked:
        return ranked
    footprints = np.array([candidates[index].footprint for index in ranked], dtype=object)
    shapely.prepare(footprints)
    tree = shapely.STRtree(footprints)
    scenes = [candidates[index].scene for index in ranked]
    penalties = np.array([penalty(candidates[index]) for index in ranked])
    chosen: set[int] = set()
    for cells in _cells(_solid(shapely.intersection(area, shapely.union_all(footprints)))):
        ground = np.array([_solid(part) for part in shapely.intersection(cells, area)], dtype=object)
        cell, item = tree.query(ground, predicate="intersects")
        if rule == "best":
            left = np.zeros(len(item))
            cut = ~shapely.covers(footprints[item], cells[cell])
            left[cut] = 1 - shapely.area(shapely.intersection(footprints[item[cut]], cells[cell[cut]])) / shapely.area(cells[cell[cut]])
            turn = np.lexsort((item, penalties[item] + WEIGHTS["uncovered"] * left.round(9), cell))
        else:
            turn = np.lexsort((item, cell))
        cell, item = cell[turn], item[turn]
        whole = shapely.covers(footprints[item], ground[cell])
        edges = np.searchsorted(cell, np.arange(len(cells) + 1)).tolist()
        for here, start, end in zip(ground, edges, edges[1:], strict=False):
            turns = zip(item[start:end].tolist(), whole[start:end].tolist(), strict=True)
            chosen.update(_fill(here, turns, footprints, scenes, per_cell))
    return [ranked[rank] for rank in sorted(chosen)]


def _fill(
    ground: Geometry, turns: Iterator[tuple[int, bool]], footprints: np.ndarray, scenes: Sequence[tuple[str, dt.date]], depth: int
) -> Iterator[int]:
    """Candidates, in turn, that add to ground until depth scenes lie on all of it. turns: candidate, and whether it covers the ground whole."""
    bare = [ground] * depth  # by layer: where fewer than that many scenes lie, the first layer counting from none
    seen: dict[tuple[str, dt.date], Geometry] = {}
    for candidate, whole in turns:
        new = ground if whole else _solid(shapely.intersection(footprints[candidate], ground))
        scene = scenes[candidate]
        if scene in seen:
            new, seen[scene] = _solid(shapely.difference(new, seen[scene])), _solid(shapely.union(new, seen[scene]))
        else:
            seen[scene] = new
        added = False
        for layer, hole in enumerate(bare):
            if new.area <= SLIVER:
                break
            added |= shapely.area(shapely.intersection(new, hole)) > SLIVER
            bare[layer], new = _solid(shapely.difference(hole, new)), _solid(shapely.difference(new, hole))
        if added:
            yield candidate
        while bare and bare[0].area <= SLIVER:
            bare.pop(0)
        if not bare:
            return


def _solid(geometry: Geometry) -> Geometry:
    """Its polygons: where shapes touch, their overlay holds lines and points too, which the next overlay does not take."""
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    return shapely.union_all([part for part in shapely.get_parts(geometry) if part.area > 0])


def _cells(area: Geometry) -> Iterator[np.ndarray]:
    """The cells that share ground with the area, some at a time: (n,) boxes. Found by quartering, so that empty oceans cost nothing."""
    if area.is_empty:
        return
    shapely.prepare(area)
    size = 4096
    west, south, east, north = (edge(value / CELL / size) for edge, value in zip((floor, floor, ceil, ceil), area.bounds, strict=True))
    column, row = (part.ravel() * size for part in np.meshgrid(np.arange(west, max(east, west + 1)), np.arange(south, max(north, south + 1))))
    while True:
        boxes = shapely.box(column * CELL, row * CELL, (column + size) * CELL, (row + size) * CELL)
        touched = shapely.intersects(area, boxes)
        if size == 1:
            break
        size //= 2
        column = np.add.outer(column[touched], (0, size, 0, size)).ravel()
        row = np.add.outer(row[touched], (0, 0, size, size)).ravel()
    boxes = boxes[touched]
    for first in range(0, len(boxes), CELLS_AT_ONCE):
        yield boxes[first : first + CELLS_AT_ONCE]
