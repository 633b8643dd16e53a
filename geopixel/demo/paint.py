"""Draws a layout flat, from the ground up: the colour, class and height of what is on top at every pixel, and how roofs
face the sun. Knows nothing of trees, shadows and sensors, which come after it, nor of files."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from geopixel.demo.layout import FARM, FOREST, INDUSTRY, OPEN, SUBURB, TOWN, Building, Layout
from geopixel.demo.texture import Points, octaves, rectangle, ribbon, rotation

CLASSES: dict[str, int] = {"building": 1, "road": 2, "water": 3, "tree": 4, "field": 5, "vehicle": 6}
"""Class codes of the truth; 0 is other ground."""
BUILDING, ROAD, WATER, TREE, FIELD, VEHICLE = CLASSES.values()

Colour = np.ndarray | tuple[float, float, float]
"""Red, green, blue, 0 to 255; clipped when drawn."""

ROOFS = np.array(
    [(168, 78, 56), (196, 106, 70), (150, 60, 55), (128, 74, 58), (170, 170, 168), (140, 145, 150), (58, 110, 175), (70, 130, 190),
     (222, 222, 216), (196, 190, 178), (92, 90, 92), (66, 66, 72), (150, 122, 98), (180, 158, 132), (120, 100, 84), (90, 130, 110)], float,
)  # fmt: skip
"""Tile reds, greys, blues, whites, darks, browns, a green."""
CLUTTER = ((30, 30, 32), (225, 225, 225), (60, 100, 160), (150, 150, 150))
CARS = np.array([(235, 235, 235), (200, 200, 205), (120, 122, 126), (40, 42, 46), (150, 30, 30), (35, 60, 120), (190, 150, 60), (60, 90, 70)], float)
GLASS = (46, 54, 62)
CROPS = np.array(
    [(92, 122, 52), (70, 108, 46), (118, 140, 66), (150, 148, 72), (186, 164, 96),
     (200, 178, 118), (132, 100, 72), (108, 84, 62), (150, 122, 90), (56, 92, 44)], float,
)  # fmt: skip
"""Greens, ripening yellows, stubble, ploughed browns."""
SOILS = np.array([(158, 134, 106), (146, 108, 82), (170, 156, 132), (124, 104, 84), (186, 164, 128), (140, 132, 122)], float)
WATERS = np.array([(38, 62, 60), (70, 84, 62), (92, 86, 60), (30, 44, 56), (48, 84, 98), (24, 34, 34)], float)
BANKS = np.array([(150, 136, 104), (96, 96, 62), (120, 106, 84)], float)


class Painter:
    """The canvases of one scene. Each draw method adds one kind of thing; call them in the order in which they stand here."""

    def __init__(self, rng: np.random.Generator, layout: Layout, size: int, gsd: float, sun: float) -> None:
        self.rng, self.layout, self.size, self.gsd, self.sun = rng, layout, size, gsd, sun
        concrete = (ROOFS.max(axis=1) - ROOFS.min(axis=1) < 56) & (ROOFS.max(axis=1) > 100)
        self.roof_share = rng.dirichlet(np.where(concrete & (rng.random() < 0.5), 0.9, 0.3))
        self.flat_share = rng.choice((0.1, 0.5, 0.9))
        self.colour = self.paint_ground()
        self.truth = Image.new("L", (size, size))
        self.height = Image.new("L", (size, size))
        """Quarter metres."""
        self.pens = [ImageDraw.Draw(canvas) for canvas in (self.colour, self.truth, self.height)]

    def pixels(self, outline: Points) -> list[float]:
        """Metres to the coordinates of ImageDraw, whose whole numbers are pixel centres."""
        return (outline / self.gsd - 0.5).ravel().tolist()

    def fill(self, outline: Points, colour: Colour, code: int | None = None, height: float | None = None) -> None:
        """Draws a polygon given in metres; a code or height of None leaves that canvas as it is."""
        pixels = self.pixels(outline)
        self.pens[0].polygon(pixels, fill=rgb(colour))
        if code is not None:
            self.pens[1].polygon(pixels, fill=code)
        if height is not None:
            self.pens[2].polygon(pixels, fill=min(255, round(4 * height)))

    def paint_ground(self) -> Image.Image:
        """Grass, dry grass and soil, mixed by smooth noise and by the landscape kind; no class of its own."""
        rng, cells = self.rng, max(32, self.size // 4)
        metre = cells / self.layout.extent
        grass = np.array([88, 108, 62]) + rng.normal(0, 9) + rng.normal(0, (8, 5, 5))
        dry = np.array([150, 138, 100]) + rng.normal(0, 12) + rng.normal(0, (6, 5, 5))
        soil = SOILS[rng.integers(len(SOILS))] + rng.normal(0, 10)
        bareness = np.zeros(6)
        bareness[[TOWN, SUBURB, INDUSTRY, FARM, FOREST, OPEN]] = rng.uniform(-0.3, 1.4), -0.7, rng.uniform(-0.2, 1.2), -0.6, -1.2, rng.normal(-0.2, 1)
        kinds = np.asarray(Image.fromarray(self.layout.kinds).resize((cells, cells), Image.Resampling.NEAREST))
        season = rng.uniform(-1.3, 1.3)
        dryness = sigmoid(2.2 * (octaves(rng, kinds.shape, max(1, 120 * metre), 5, 0.6) + season))[..., None]
        bare = sigmoid(3.0 * (octaves(rng, kinds.shape, max(1, 70 * metre), 5, 0.65) + bareness[kinds] - 0.5))[..., None]
        mixed = grass + (dry - grass) * dryness
        mixed += (soil - mixed) * bare
        mixed *= 1 + 0.06 * octaves(rng, kinds.shape, max(1, 25 * metre), 3)[..., None]
        picture = Image.fromarray(np.clip(mixed, 1, 255).astype(np.uint8))
        return picture.resize((self.size, self.size), Image.Resampling.BICUBIC)

    def draw_fields(self) -> np.ndarray:
        """Fills the fields. Returns the float32 brightness of their crop rows around 1: (H, W), or (1, 1) where there are no fields."""
        rng, fields = self.rng, self.layout.fields
        if not fields:
            return np.ones((1, 1), np.float32)
        numbers = Image.new("I", (self.size, self.size))
        pen = ImageDraw.Draw(numbers)
        palette = CROPS[rng.choice(len(CROPS), 4, replace=False)]
        for number, outline in enumerate(fields, start=1):
            self.fill(outline, palette[rng.integers(4)] * rng.uniform(0.85, 1.15) + rng.normal(0, 5, 3), FIELD)
            pen.polygon(self.pixels(outline), fill=number)
        edges = np.array([outline[1] - outline[0] for outline in fields])
        angle = np.arctan2(edges[:, 1], edges[:, 0]) + rng.choice((0, np.pi / 2), len(fields))
        wave = 2 * np.pi / rng.uniform(2.5, 7.0, len(fields))
        rows = np.column_stack([np.cos(angle) * wave, np.sin(angle) * wave, rng.uniform(0.02, 0.13, len(fields))])
        table = np.concatenate([np.zeros((1, 3)), rows]).astype(np.float32)
        index = np.asarray(numbers)
        metres = np.arange(self.size, dtype=np.float32) * np.float32(self.gsd)
        brightness = table[index, 0] * metres[None, :]
        brightness += table[index, 1] * metres[:, None]
        np.sin(brightness, out=brightness)
        brightness *= table[index, 2]
        brightness += 1
        return brightness

    def draw_water(self) -> None:
        """Every water has a bank of sand, reed or mud around it."""
        water = WATERS[self.rng.integers(len(WATERS))] + self.rng.normal(0, 5)
        bank = BANKS[self.rng.integers(len(BANKS))] + self.rng.normal(0, 8)
        for outline in self.layout.water:
            closed = self.pixels(np.concatenate([outline, outline[:2]]))
            width = round(self.rng.uniform(2, 7) / self.gsd)
            self.pens[0].line(closed, fill=rgb(bank), width=width, joint="curve")
            self.pens[1].line(closed, fill=0, width=width, joint="curve")
        for outline in self.layout.water:
            self.fill(outline, water + self.rng.normal(0, 2), WATER)

    def draw_roads(self) -> None:
        """All sidewalks, then all surfaces, then the markings, so that crossings are open."""
        rng, roads = self.rng, self.layout.roads
        surfaces = {
            "asphalt": np.full(3, rng.uniform(80, 150)) + (0, 0, 3),
            "concrete": np.array([186, 182, 172]) + rng.normal(0, 8),
            "dirt": np.array([168, 142, 110]) + rng.normal(0, 10) + rng.normal(0, 4, 3),
        }
        walk = np.array([172, 168, 160]) + rng.normal(0, 12)
        for road in roads:
            if road.sidewalk:
                self.fill(ribbon(road.line, road.width + 2 * road.sidewalk), walk, 0)
        for road in roads:
            self.fill(ribbon(road.line, road.width), surfaces[road.surface] * rng.uniform(0.93, 1.07), ROAD)
        for road in roads:
            if not road.marked:
                continue
            paint = (225, 222, 205) if rng.random() < 0.7 else (215, 185, 90)
            for start in range(0, len(road.line) - 2, 2):
                self.fill(ribbon(road.line[start : start + 2], 0.3), paint)
            for side in (-1, 1) if road.width > 10 else ():
                self.fill(ribbon(road.line, 0.25, side * (road.width / 2 - 0.5)), (220, 218, 205))

    def draw_pavements(self) -> None:
        """Yards of concrete, asphalt or gravel: other ground, laid around roads and water."""
        colour, truth = self.colour.copy(), self.truth.copy()
        for outline in self.layout.pavements:
            grey = self.rng.uniform(95, 195)
            self.fill(outline, (grey, grey * 0.98, grey * self.rng.uniform(0.86, 0.97)), 0)
        keep = Image.fromarray(np.isin(np.asarray(truth), (ROAD, WATER)))
        self.colour.paste(colour, mask=keep)
        self.truth.paste(truth, mask=keep)

    def draw_buildings(self) -> None:
        rng = self.rng
        for building in self.layout.buildings:
            common = rng.random() < 0.8
            colour = ROOFS[rng.choice(len(ROOFS), p=self.roof_share) if common else rng.integers(len(ROOFS))]
            colour = colour * rng.uniform(0.82, 1.12) + rng.normal(0, 5, 3)
            flat = rng.random() < (0.95 if building.kind == INDUSTRY else self.flat_share)
            for centre, half in building.parts:
                self.fill(rectangle(centre, half, building.angle), colour, BUILDING, building.height)
                if flat:
                    self.draw_flat_roof(building, centre, half, colour)
                else:
                    self.draw_pitched_roof(building.angle, centre, half, colour)

    def draw_pitched_roof(self, angle: float, centre: Points, half: np.ndarray, colour: np.ndarray) -> None:
        """Two faces (gable) or four (hip), each as bright as it faces the sun; the ridge runs along the longer side."""
        (a, b), slope = half, self.rng.uniform(0.18, 0.34)
        if b > a:
            a, b, angle = b, a, angle + np.pi / 2
        hip = b if a > 1.2 * b and self.rng.random() < 0.5 else 0.0
        corners = np.array([[-a, -b], [a, -b], [a, b], [-a, b], [hip - a, 0], [a - hip, 0]]) @ rotation(angle).T + centre
        faces = {-np.pi / 2: [0, 1, 5, 4], np.pi / 2: [2, 3, 4, 5]}
        if hip:
            faces |= {0.0: [1, 2, 5], np.pi: [3, 0, 4]}
        for outward, face in faces.items():
            self.fill(corners[face], colour * (1 - slope * math.cos(angle + outward - self.sun)))
        self.fill(ribbon(corners[4:], max(0.35, self.gsd * 0.7)), colour * 1.12 + 6)

    def draw_flat_roof(self, building: Building, centre: Points, half: np.ndarray, colour: np.ndarray) -> None:
        """A parapet, terraces of other tones, a stair house, tanks and vents; seams across large roofs."""
        rng, angle = self.rng, building.angle
        inner = np.maximum(half - 0.5, 1.0)
        floor = colour * rng.uniform(0.82, 0.98)
        turn = rotation(angle)

        def spot(*size: float) -> Points:
            """A rectangle of these half sides somewhere on the roof."""
            return rectangle(centre + turn @ (rng.uniform(-1, 1, 2) * np.maximum(inner - size, 0)), size, angle)

        self.fill(rectangle(centre, inner, angle), floor)
        if half.prod() > 120 and rng.random() < 0.6:
            for at in np.arange(1.5 - half[0], half[0] - 1, 3.0):
                self.fill(rectangle(centre + turn @ (at, 0.0), (0.3, inner[1]), angle), floor * 0.9)
        for _ in range(rng.integers(0, 3)):
            self.fill(spot(*half * rng.uniform(0.2, 0.5, 2)), floor * rng.uniform(0.75, 1.2) + rng.normal(0, 5))
        if building.kind == TOWN and rng.random() < 0.6:
            self.fill(spot(*np.minimum(half / 2, 2.2)), ROOFS[rng.integers(len(ROOFS))], None, building.height + 2.6)
        for _ in range(rng.integers(2, 9) if building.kind == INDUSTRY else rng.integers(0, 4)):
            size = rng.uniform(0.4, 0.9)
            self.fill(spot(size, size), CLUTTER[rng.integers(len(CLUTTER))], None, building.height + 1.2)

    def draw_vehicles(self) -> None:
        """Bodies with a windscreen and a rear window; trucks and buses are taller and have the windscreen only."""
        for x, y, heading, length, width in self.layout.vehicles:
            along, large = np.array([math.cos(heading), math.sin(heading)]), length > 6
            paint = CARS[self.rng.integers(len(CARS))] * self.rng.uniform(0.85, 1.08)
            self.fill(rectangle((x, y), (length / 2, width / 2), heading), paint, VEHICLE, 3.0 if large else 1.4)
            for at in (length / 2 - 0.5,) if large else (0.16 * length, -0.24 * length):
                self.fill(rectangle((x, y) + along * at, (0.35, width / 2 - 0.2), heading), GLASS)


def rgb(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(1, int(value))) for value in colour)
    return red, green, blue


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
