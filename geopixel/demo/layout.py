"""What is where in a rendered scene, as plain geometry in metres: landscape kinds first, then water, roads, fields,
buildings, vehicles and trees, each kept clear of those before it. Knows nothing of pixels, colours or files."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from geopixel.demo.texture import Points, normals, octaves, rectangle, ribbon, rotation

TOWN, SUBURB, INDUSTRY, FARM, FOREST, OPEN = range(6)
"""Landscape kinds. Regions of one kind are a few hundred metres wide."""
KINDS = 6
CELL = 2.0
"""Metres a cell of the maps that placement looks things up in."""
YARDS = {TOWN: 0.3, SUBURB: 0.25, INDUSTRY: 0.9, FARM: 0.5}
"""Share of the buildings that stand on a paved yard."""


@dataclass(frozen=True, slots=True)
class Road:
    line: Points
    width: float
    """Metres."""
    surface: str
    """asphalt, concrete or dirt."""
    marked: bool
    sidewalk: float
    """Metres on each side, 0 for none."""


@dataclass(frozen=True, slots=True)
class Building:
    parts: tuple[tuple[Points, np.ndarray], ...]
    """Centre and half sides of the rectangles that it is made of."""
    angle: float
    height: float
    """Metres."""
    kind: int
    """Landscape kind that it stands in."""


@dataclass(frozen=True, slots=True)
class District:
    """A part of the scene with streets and lots along one direction: local (u, v) = world turned by -angle, then gently warped."""

    site: Points
    angle: float
    u: np.ndarray
    """Street positions across u in metres from the site; sorted."""
    v: np.ndarray
    bend: np.ndarray
    """(2, 3): amplitude in metres, wavelength in metres, phase of the warp of u and of v."""
    width: float
    surface: str

    def world(self, local: Points) -> Points:
        u, v = local.T
        (a, wavelength_a, p), (b, wavelength_b, q) = self.bend
        warped = np.stack([u + a * np.sin(v * 2 * np.pi / wavelength_a + p), v + b * np.sin(u * 2 * np.pi / wavelength_b + q)], axis=1)
        return warped @ rotation(self.angle).T + self.site

    def heading(self, local: Points) -> np.ndarray:
        """(N,) direction of the u axis in the world at these points."""
        step = self.world(local + (0.5, 0.0)) - self.world(local - (0.5, 0.0))
        return np.arctan2(step[:, 1], step[:, 0])


@dataclass(slots=True)
class Layout:
    """A scene of `extent` x `extent` metres. Filled in by plan_layout in the order of the fields."""

    extent: float
    kinds: np.ndarray
    """(rows, columns) uint8 landscape kind of every CELL."""
    blocked: Image.Image
    """Mode L, one pixel a CELL: 1 water, 2 road, 3 field, 4 pavement, 5 building; 0 is free."""
    water: list[Points] = field(default_factory=list)
    roads: list[Road] = field(default_factory=list)
    fields: list[Points] = field(default_factory=list)
    """Four corners each."""
    pavements: list[Points] = field(default_factory=list)
    """Car parks and yards: outlines."""
    buildings: list[Building] = field(default_factory=list)
    vehicles: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))
    """(N, 5): x, y, heading, length, width."""
    trees: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))
    """(N, 3): x, y, crown radius."""

    def block(self, outline: Points, code: int) -> None:
        ImageDraw.Draw(self.blocked).polygon((outline / CELL).ravel().tolist(), fill=code)

    def look(self, raster: np.ndarray, points: Points) -> np.ndarray:
        """Values of a map at (..., 2) points; points outside the scene get the value at its edge."""
        index = np.clip((points / CELL).astype(int), 0, raster.shape[0] - 1)
        return raster[index[..., 1], index[..., 0]]

    def inside(self, points: Points, margin: float = 0.0) -> np.ndarray:
        """(...) bool for (..., 2) points; `margin` metres beyond the edges still count."""
        return np.all((points > -margin) & (points < self.extent + margin), axis=-1)


def plan_layout(rng: np.random.Generator, extent: float) -> Layout:
    cells = math.ceil(extent / CELL)
    layout = Layout(extent, plan_kinds(rng, cells), Image.new("L", (cells, cells)))
    plan_water(rng, layout)
    districts = plan_districts(rng, layout)
    plan_roads(rng, layout, districts)
    plan_fields(rng, layout)
    for index in range(len(districts)):
        plan_buildings(rng, layout, districts, index)
    plan_farmsteads(rng, layout)
    plan_vehicles(rng, layout)
    plan_trees(rng, layout)
    return layout


def plan_kinds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """(cells, cells) uint8: the strongest of six smooth maps, biased so that a scene has one to four kinds."""
    share = rng.dirichlet((0.7, 0.45, 0.3, 0.8, 0.5, 0.65))
    wavelength = rng.uniform(250, 700) / CELL
    maps = [octaves(rng, (cells, cells), wavelength, 3, 0.35) + 1.1 * math.log(share[kind] + 0.01) for kind in range(KINDS)]
    return np.argmax(maps, axis=0).astype(np.uint8)


def plan_water(rng: np.random.Generator, layout: Layout) -> None:
    """Lakes and ponds are stars with smooth radii, rivers and canals are ribbons from edge to edge."""
    turn = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    for _ in range(rng.choice((0, 1, 2, 4), p=(0.5, 0.25, 0.15, 0.1))):
        radius = np.exp(rng.uniform(math.log(12), math.log(190)))
        shape = 1 + sum(rng.normal(0, 0.32 / k) * np.cos(k * turn + rng.uniform(0, 6.3)) for k in range(2, 9))
        stretch = np.array([rng.uniform(0.5, 1), 1.0])
        outline = np.stack([np.cos(turn), np.sin(turn)], axis=1) * stretch * (radius * np.clip(shape, 0.25, 1.8))[:, None]
        layout.water.append(outline @ rotation(rng.uniform(0, 6.3)).T + rng.uniform(0, layout.extent, 2))
    kind = rng.choice(("none", "river", "canal"), p=(0.68, 0.22, 0.1))
    if kind != "none":
        canal = kind == "canal"
        line = crossing(rng, layout.extent, wobble=5.0 if canal else rng.uniform(20, 80))
        width = rng.uniform(6, 14) if canal else rng.uniform(8, 40) * (1 + 0.3 * np.sin(np.arange(len(line)) * rng.uniform(0.03, 0.08) + rng.uniform(0, 6)))
        layout.water.append(ribbon(line, width))
    for outline in layout.water:
        layout.block(outline, 1)


def crossing(rng: np.random.Generator, extent: float, wobble: float) -> Points:
    """A smooth line, a point every 6 m, from beyond one edge of the scene to beyond another."""
    t = np.arange(-1.5 * extent, 1.5 * extent, 6.0)
    wave = max(extent, 700.0)
    side = sum(rng.normal(0, wobble / k) * np.sin(2 * np.pi * k * t / (wave * rng.uniform(0.6, 1.1)) + rng.uniform(0, 6.3)) for k in (1, 2, 3))
    line = np.stack([t, np.broadcast_to(side, t.shape)], axis=1)
    return line @ rotation(rng.uniform(0, np.pi)).T + rng.uniform(0.2 * extent, 0.8 * extent, 2)


def plan_districts(rng: np.random.Generator, layout: Layout) -> list[District]:
    main = rng.uniform(0, np.pi)
    narrow = rng.random() < 0.5
    districts = []
    for _ in range(rng.integers(2, 7)):
        reach = layout.extent * 1.5
        block = (rng.uniform(30, 60), rng.uniform(60, 130))
        u, v = (np.cumsum(rng.uniform(0.6, 1.4, int(2 * reach / side) + 2) * side) - reach for side in block)
        organic = rng.random() < 0.6
        bend = np.array([[rng.uniform(5, 16) if organic else 0.0, rng.uniform(150, 400), rng.uniform(0, 6.3)] for _ in range(2)])
        surface = rng.choice(("asphalt", "concrete", "dirt"), p=(0.65, 0.2, 0.15))
        width = rng.uniform(3.5, 5.5) if narrow else rng.uniform(5, 8)
        angle = main + rng.choice((0.0, 0.0, rng.uniform(-0.8, 0.8)))
        districts.append(District(rng.uniform(0, layout.extent, 2), angle, u, v, bend, width, str(surface)))
    return districts


def nearest(districts: list[District], points: Points) -> np.ndarray:
    """Index of the district whose site is nearest, for (N, 2) points."""
    sites = np.array([district.site for district in districts])
    return ((points[:, None] - sites) ** 2).sum(axis=2).argmin(axis=1)


def runs(keep: np.ndarray, least: int) -> list[slice]:
    """Slices of the runs of True that are at least `least` long."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(int)))
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if stop - start >= least]


def plan_roads(rng: np.random.Generator, layout: Layout, districts: list[District]) -> None:
    """Streets of the districts, then tracks and main roads over them; only main roads bridge water, and only where it is narrow."""
    blocked = np.asarray(layout.blocked)
    for index, district in enumerate(districts):
        reach = np.arange(-1.5 * layout.extent, 1.5 * layout.extent, 5.0)
        sidewalk = rng.uniform(1, 2.5) if district.surface != "dirt" and rng.random() < 0.5 else 0.0
        marked = bool(district.width > 6 and rng.random() < 0.4)
        lines = [np.stack([np.full_like(reach, u), reach], axis=1) for u in district.u[rng.random(len(district.u)) < 0.8]]
        lines += [np.stack([reach, np.full_like(reach, v)], axis=1) for v in district.v]
        for line in map(district.world, lines):
            line = line[layout.inside(line, 20)]
            if not len(line):
                continue
            urban = (layout.look(layout.kinds, line) <= INDUSTRY) & (layout.look(blocked, line) == 0) & (nearest(districts, line) == index)
            layout.roads += [Road(line[run], district.width * rng.uniform(0.8, 1.15), district.surface, marked, sidewalk) for run in runs(urban, 8)]
    for _ in range(rng.choice((0, 1, 2), p=(0.72, 0.22, 0.06))):
        line, width = crossing(rng, layout.extent, rng.uniform(5, 40)), rng.uniform(3, 4.2)
        layout.roads += [Road(line[run], width, "dirt", False, 0.0) for run in runs(layout.inside(line, 20) & (layout.look(blocked, line) == 0), 6)]
    for _ in range(rng.choice((0, 1, 2), p=(0.58, 0.34, 0.08))):
        line = crossing(rng, layout.extent, rng.uniform(5, 60))
        width, marked, sidewalk = rng.uniform(8, 14), bool(rng.random() < 0.7), float(rng.choice((0.0, 2.0)))
        passable = layout.inside(line, 20)
        for wide in runs(layout.look(blocked, line) == 1, 16):
            passable[wide] = False
        layout.roads += [Road(line[run], width, "asphalt", marked, sidewalk) for run in runs(passable, 8)]
    for road in layout.roads:
        layout.block(ribbon(road.line, road.width + 2 * road.sidewalk + CELL), 2)


def split(rng: np.random.Generator, low: np.ndarray, high: np.ndarray, most: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Cuts a rectangle across its longer side until both sides are below `most` (longer ones up to twice that)."""
    side = high - low
    axis = int(side.argmax())
    if side[axis] < most * rng.uniform(1.0, 2.0):
        return [(low, high)]
    at = low[axis] + side[axis] * rng.uniform(0.35, 0.65)
    left, right = high.copy(), low.copy()
    left[axis] = right[axis] = at
    return split(rng, low, left, most) + split(rng, right, high, most)


def plan_fields(rng: np.random.Generator, layout: Layout) -> None:
    """Rectangles of a turned frame, slightly sheared at their corners, where most of them lies in farmland."""
    if not (layout.kinds == FARM).any():
        return
    blocked = np.asarray(layout.blocked)
    angle, gap = rng.uniform(0, np.pi), rng.uniform(0.5, 3.5)
    reach = np.full(2, layout.extent * 0.75)
    for low, high in split(rng, -reach, reach, np.exp(rng.uniform(math.log(45), math.log(140)))):
        if rng.random() < 0.1:
            continue
        centre = ((low + high) / 2) @ rotation(angle).T + layout.extent / 2
        a, b = (high - low) / 2 - gap
        outline = rectangle(centre, (a, b), angle) + rng.normal(0, gap / 3, (4, 2))
        probes = np.concatenate([centre + (outline - centre) * reach for reach in (0.0, 0.5, 0.9)])
        if layout.inside(probes).any() and (layout.look(layout.kinds, probes) == FARM).mean() > 0.7 and (layout.look(blocked, probes) == 1).mean() < 0.5:
            layout.fields.append(outline)
            layout.block(outline, 3)
    for road in layout.roads:
        layout.block(ribbon(road.line, road.width + 2 * road.sidewalk + CELL), 2)
    for outline in layout.water:
        layout.block(outline, 1)


def lots(edges: np.ndarray, margin: float, pitch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts the space between neighbouring streets into lots of about `pitch`: centres, lengths, whether a street is next to it."""
    centres, lengths, front = [], [], []
    for start, stop in zip(edges[:-1] + margin, edges[1:] - margin, strict=True):
        count = max(1, round((stop - start) / pitch))
        step = (stop - start) / count
        if step < 5:
            continue
        centres += [start + step * (k + 0.5) for k in range(count)]
        lengths += [step] * count
        front += [k in (0, count - 1) for k in range(count)]
    return np.array(centres, float), np.array(lengths, float), np.array(front, bool)


def plan_buildings(rng: np.random.Generator, layout: Layout, districts: list[District], index: int) -> None:
    """Fills the lots of one district, in each landscape kind after its manner: tight rows, houses with gardens, halls with yards."""
    district, sites = districts[index], np.asarray(layout.blocked)
    packed = rng.random() < 0.4
    manners = {  # metres a lot, share of its sides that is built, share of the lots, metres to the kerb, storeys
        TOWN: (rng.uniform(8, 15), rng.uniform(0.95, 1.1) if packed else rng.uniform(0.72, 1.0), rng.uniform(0.78, 0.98), 0.0, rng.uniform(1.5, 4.5)),
        SUBURB: (rng.uniform(16, 26), rng.uniform(0.42, 0.62), rng.uniform(0.6, 0.95), 2.0, rng.uniform(1.1, 2.2)),
        INDUSTRY: (rng.uniform(24, 50), rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.95), 2.0, rng.uniform(1.8, 3.5)),
    }
    for kind, (pitch, fill, presence, setback, storeys) in manners.items():
        margin = district.width / 2 + setback + 0.5
        uc, ul, uf = lots(district.u, margin, pitch)
        vc, vl, vf = lots(district.v, margin, pitch * rng.uniform(0.8, 1.4))
        local = np.stack(np.meshgrid(uc, vc), axis=-1).reshape(-1, 2)
        space = np.stack(np.meshgrid(ul, vl), axis=-1).reshape(-1, 2)
        at_street = (uf[None, :] | vf[:, None]).ravel()
        centres = district.world(local)
        keep = layout.inside(centres, 15) & (at_street | (kind != SUBURB)) & (rng.random(len(local)) < presence)
        keep[keep] = (layout.look(layout.kinds, centres[keep]) == kind) & (nearest(districts, centres[keep]) == index)
        local, space, centres = local[keep], space[keep], centres[keep]
        halves = np.clip(space * fill * rng.uniform(0.75, 1.05, space.shape) / 2, 2.5, 20)
        angles = district.heading(local) + rng.normal(0, 0.06 if kind == TOWN else 0.02, len(local)) + (rng.random(len(local)) < 0.03) * 0.4
        centres = centres + rng.uniform(-0.5, 0.5, centres.shape) * np.maximum(space - 2 * halves, 0.5)
        for centre, half, angle in zip(centres, halves, angles, strict=True):
            place_building(rng, layout, sites, centre, half, angle, 3.2 * max(1.0, rng.normal(storeys, 0.7)), kind)


def place_building(
    rng: np.random.Generator, layout: Layout, sites: np.ndarray, centre: Points, half: np.ndarray, angle: float, height: float, kind: int
) -> None:
    """Adds a building, perhaps with a wing, perhaps on a yard, where its ground (corners, sides, middle) is free in `sites`."""
    outline = rectangle(centre, half, angle)
    probes = np.concatenate([outline, (outline + outline[[1, 2, 3, 0]]) / 2, [centre]])
    if layout.look(sites, probes).any():
        return
    if rng.random() < YARDS[kind]:
        layout.pavements.append(rectangle(centre + rng.normal(0, 2, 2), half + rng.uniform(1, 8, 2), angle))
    a, b = half
    parts = [(centre, half)]
    if min(a, b) > 3.5 and rng.random() < (0.2 if kind == TOWN else 0.35):  # an L or a T: a bar, and a wing on one of its long sides
        turn, wing, side = rotation(angle), rng.uniform(0.35, 0.5), rng.choice((-1.0, 1.0))
        shift = rng.choice((-1.0, 0.0, 1.0)) * a * (1 - wing)
        bar = (centre + turn @ (0.0, -side * b * (1 - wing)), np.array([a, b * wing]))
        parts = [bar, (centre + turn @ (shift, side * b * wing), np.array([a * wing, b * (1 - wing)]))]
    layout.buildings.append(Building(tuple(parts), angle, height, kind))
    layout.block(outline, 5)


def plan_farmsteads(rng: np.random.Generator, layout: Layout) -> None:
    """A few houses and barns together, alone in the country."""
    blocked = np.asarray(layout.blocked)
    sites = np.where(blocked == 3, 0, blocked)  # a field gives way to a farm
    for site in rng.uniform(0, layout.extent, (rng.poisson(1.5 * (layout.extent / 1000) ** 2), 2)):
        if layout.look(layout.kinds, site) not in (FARM, OPEN):
            continue
        angle = rng.uniform(0, np.pi)
        for k in range(rng.integers(1, 5)):
            centre = site + rotation(angle) @ np.array([(k % 2) * 32.0, (k // 2) * 30.0]) + rng.normal(0, 2, 2)
            half = np.array([rng.uniform(4, 13), rng.uniform(3, 7)])
            place_building(rng, layout, sites, centre, half, angle + rng.choice((0, np.pi / 2)), rng.uniform(3, 7), FARM)


def plan_vehicles(rng: np.random.Generator, layout: Layout) -> None:
    """Along the lanes and kerbs of the roads, and in rows on car parks."""
    busy = rng.choice((0.0, 0.5, 1.5, 4.0), p=(0.25, 0.25, 0.3, 0.2))  # vehicles per 100 m of road
    found = []
    for road in layout.roads:
        length = np.hypot(*np.diff(road.line, axis=0).T).sum()
        count = rng.poisson(busy * length / 100 * (0.15 if road.width < 4.5 else 1.0))
        at = rng.integers(0, len(road.line), count)
        across, parked = normals(road.line), rng.random(count) < 0.4
        side = rng.choice((-1.0, 1.0), count) * np.where(parked, np.maximum(road.width / 2 - 1.2, 0), road.width / 4)
        places = road.line[at] + across[at] * side[:, None]
        headings = np.arctan2(-across[at, 0], across[at, 1]) + rng.normal(0, 0.03, count)
        found.append(np.column_stack([places, headings, vehicle_sizes(rng, count)]))
    found += [park for yard in layout.pavements if busy and rng.random() < 0.35 for park in [car_park(rng, yard)] if len(park)]
    vehicles = np.concatenate([*found, np.zeros((0, 5))])
    vehicles = vehicles[layout.inside(vehicles[:, :2])]
    ground = layout.look(np.asarray(layout.blocked), vehicles[:, :2])
    layout.vehicles = vehicles[(ground != 5) & (ground != 1)]


def vehicle_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 2) length and width in metres: cars, one in twelve a truck or bus."""
    large = rng.random(count) < 0.08
    return np.stack([np.where(large, rng.uniform(7, 12, count), rng.uniform(3.9, 5.0, count)), np.where(large, 2.5, rng.uniform(1.75, 2.0, count))], axis=1)


def car_park(rng: np.random.Generator, yard: Points) -> np.ndarray:
    """(N, 5) cars side by side along the first edge of a yard."""
    edge = yard[1] - yard[0]
    inward = (yard[3] - yard[0]) / np.hypot(*(yard[3] - yard[0]))
    count = int(np.hypot(*edge) / 2.8)
    slots = (np.arange(count) + 0.5)[rng.random(count) < rng.uniform(0.2, 0.9)] / max(count, 1)
    places = yard[0] + slots[:, None] * edge + inward * 2.7
    heading = math.atan2(inward[1], inward[0])
    sizes = np.stack([rng.uniform(3.9, 5.0, len(slots)), rng.uniform(1.75, 2.0, len(slots))], axis=1)
    return np.column_stack([places, heading + rng.normal(0, 0.03, len(slots)), sizes])


def plan_trees(rng: np.random.Generator, layout: Layout) -> None:
    """Candidates on a jittered grid, kept by the density of the place; hedgerows and avenues are candidates along lines."""
    spacing = rng.uniform(4.0, 5.0)
    count = math.ceil(layout.extent / spacing) + 1
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), axis=-1).reshape(-1, 2) * spacing
    points = grid + rng.uniform(-0.45, 0.45, grid.shape) * spacing
    sparse = rng.choice((0.0, 0.3, 1.0, 2.5), p=(0.2, 0.3, 0.3, 0.2))
    density = np.zeros(KINDS)
    density[[TOWN, SUBURB, INDUSTRY, FARM, OPEN]] = np.array([0.03, 0.1, 0.015, 0.01, 0.012]) * sparse
    density[FOREST] = 1.0
    groves = octaves(rng, layout.kinds.shape, rng.uniform(60, 160) / CELL, 3)
    kinds = layout.look(layout.kinds, points + rng.normal(0, 6, points.shape))  # ragged forest edges
    boost = np.where(kinds == FOREST, 1.0, np.exp(np.clip(2.2 * (layout.look(groves, points) - 0.3), -4, 4)))
    keep = rng.random(len(points)) < density[kinds] * boost
    radius = np.where(kinds == FOREST, rng.uniform(3.0, 4.8, len(points)), np.exp(rng.normal(0.95, 0.32, len(points))))
    rows = [np.column_stack([points, radius])[keep]]
    for outline in layout.fields:
        if rng.random() < 0.2 * sparse:
            start, stop = outline[(corner := rng.integers(4))], outline[(corner + 1) % 4]
            along = np.arange(0, 1, rng.uniform(2.5, 6) / max(np.hypot(*(stop - start)), 6))
            line = start + along[:, None] * (stop - start) + rng.normal(0, 0.6, (len(along), 2))
            rows.append(np.column_stack([line, rng.uniform(1.5, 3.5, len(line))]))
    for road in layout.roads:
        if road.surface != "dirt" and rng.random() < 0.12 * sparse:
            side = road.line[::2] + normals(road.line)[::2] * (road.width / 2 + road.sidewalk + rng.uniform(0.5, 2.5)) * rng.choice((-1, 1))
            rows.append(np.column_stack([side, rng.uniform(1.5, 3.5, len(side))]))
    trees = np.concatenate(rows)
    trees[:, 2] = np.clip(trees[:, 2], 1.4, 5.5)
    ground = layout.look(np.asarray(layout.blocked), trees[:, :2])
    layout.trees = trees[(ground == 0) | (ground == 4) | ((ground == 3) & (rng.random(len(trees)) < 0.15))]
