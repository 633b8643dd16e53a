"""Objects that stand together: rows and clusters, by geometry alone. Each search gives those that nobody would dispute and, besides, those that
somebody might see: words may mean one of the former only where no other fits them."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from geopixel.annotation.objects import SPECK, Frame

Group = frozenset[int]

SHORTEST_ROW = 4
LEAST_CLUSTER = 4
ROW_BEND, ROW_BEND_LOOSE = 0.25, 0.45
"""Share of its step by which the next of a row may be off."""
ROW_NEIGHBOURS = 6
LARGER = 2.5
"""How many times larger than another a member of a row may be."""
CLUSTER_GAP, CLUSTER_GAP_LOOSE = 0.035, 0.08
"""Share of the frame's longer side between the boxes of neighbours in a cluster; and up to which an object might still be counted in."""
MOST_OBJECTS = 400
"""Of one class, beyond which nobody looks for groups among them."""


def find_rows(frame: Frame, category: str) -> tuple[list[Group], list[Group]]:
    """Rows of four or more objects of a class, certain and possible: evenly spaced, in a line. Certain ones keep away from others of the class."""
    key = ("rows", category)
    if key not in frame.memory:
        members = _members(frame, category)
        possible = _chains(frame, members, ROW_BEND_LOOSE)
        certain = [row for row in _chains(frame, members, ROW_BEND) if row in possible and _alone(frame, row, members)]
        frame.memory[key] = certain, possible
    certain, possible = frame.memory[key]
    return certain, possible


def find_clusters(frame: Frame, category: str) -> tuple[list[Group], list[Group]]:
    """Clusters of four or more objects of a class, certain and possible: each near another of it, and for a certain one all others far off."""
    key = ("clusters", category)
    if key not in frame.memory:
        members = _members(frame, category)
        tight, loose = (_components(frame, members, gap) for gap in (CLUSTER_GAP, CLUSTER_GAP_LOOSE))
        certain = [group for group in tight if group in loose and _compact(frame, group)]
        frame.memory[key] = certain, [*tight, *(group for group in loose if group not in tight)]
    certain, possible = frame.memory[key]
    return certain, possible


def _members(frame: Frame, category: str) -> np.ndarray:
    members = frame.of(category)
    members = members[frame.area[members] >= SPECK]
    return members if len(members) <= MOST_OBJECTS else members[:0]


def _pixels(frame: Frame, members: np.ndarray) -> np.ndarray:
    """(m, 2) x, y of the centres in pixels."""
    height, width = frame.shape
    return frame.centres[members] * (width, height)


def _chains(frame: Frame, members: np.ndarray, bend: float) -> list[Group]:
    """Longest chains in which each step is about the one before it, and no member much larger than another."""
    if len(members) < SHORTEST_ROW:
        return []
    centres = _pixels(frame, members)
    tree = cKDTree(centres)
    _, neighbours = tree.query(centres, k=min(ROW_NEIGHBOURS + 1, len(members)))
    found: set[frozenset[int]] = set()
    for first, near in enumerate(neighbours.tolist()):
        for second in near[1:]:
            chain = [first, second]
            _extend(chain, centres, tree, bend)
            chain.reverse()
            _extend(chain, centres, tree, bend)
            sizes = frame.area[members[chain]]
            if len(chain) >= SHORTEST_ROW and sizes.max() <= LARGER * sizes.min() and _even(centres[chain]):
                found.add(frozenset(members[chain].tolist()))
    longest = [row for row in found if not any(row < other for other in found)]
    return sorted(longest, key=sorted)


def _extend(chain: list[int], centres: np.ndarray, tree: cKDTree, bend: float) -> None:
    """Goes on from the end of the chain, in place."""
    while True:
        step = centres[chain[-1]] - centres[chain[-2]]
        distance, following = tree.query(centres[chain[-1]] + step)
        if distance > bend * np.hypot(*step) or following in chain:
            return
        chain.append(int(following))


def _even(centres: np.ndarray) -> bool:
    """All of them lie along the line through the ends, steps of one length."""
    steps = np.hypot(*np.diff(centres, axis=0).T)
    along = centres[-1] - centres[0]
    x, y = (centres - centres[0]).T
    across = np.abs(along[0] * y - along[1] * x) / np.hypot(*along)
    return bool(steps.max() <= 1.6 * steps.min() and across.max() <= 0.5 * steps.mean())


def _alone(frame: Frame, row: Group, members: np.ndarray) -> bool:
    """No other object of the class is as near to the row as its members are to one another."""
    others = np.array([index for index in members.tolist() if index not in row], int)
    if not len(others):
        return True
    inside, outside = _pixels(frame, np.array(sorted(row))), _pixels(frame, others)
    spacing = cKDTree(inside).query(inside, k=2)[0][:, 1].max()
    return bool(cKDTree(inside).query(outside)[0].min() > 1.4 * spacing)


def _components(frame: Frame, members: np.ndarray, gap: float) -> list[Group]:
    """Sets of objects that are joined by gaps between their boxes of at most this share of the frame."""
    if len(members) < LEAST_CLUSTER:
        return []
    left, top, right, bottom = frame.boxes[members].T
    across = np.maximum(left[:, None] - right[None, :], left[None, :] - right[:, None]).clip(0)
    down = np.maximum(top[:, None] - bottom[None, :], top[None, :] - bottom[:, None]).clip(0)
    joined = np.hypot(across, down) <= gap * max(frame.shape)
    count, label = connected_components(coo_array(joined), directed=False)
    groups = [frozenset(members[label == which].tolist()) for which in range(count)]
    return [group for group in groups if len(group) >= LEAST_CLUSTER]


def _compact(frame: Frame, group: Group) -> bool:
    """A heap, not a string and not half of the picture."""
    centres = frame.centres[sorted(group)]
    width, height = np.sqrt(np.linalg.eigvalsh(np.cov(centres.T)).clip(1e-9))
    far = max(np.abs(a - b).max() for a, b in combinations(centres, 2))
    return bool(width / height >= 0.35 and far <= 0.5)
