"""The drawings of the report: features over the imagery, tiles by their state, and how scores and sizes are spread. Each is a Bokeh figure;
what belongs to a prompt is named, so that the page can hide it. Knows what is to be drawn; nothing of files or of the page around it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from bokeh.core.validation import silence
from bokeh.core.validation.warnings import MISSING_RENDERERS
from bokeh.models import BoxZoomTool, ColumnDataSource, HoverTool, PanTool, Range1d, ScaleBar, WheelZoomTool
from bokeh.plotting import figure
from PIL import Image
from shapely import Geometry

from geopixel.publish.backdrop import INK, OUTLINE, PAPER, SCORE, STATE_COLOURS, Backdrop, colour
from geopixel.types import STATES, State, Tiles

silence(MISSING_RENDERERS)  # a map on which nothing was found is a map

FEATURES_DRAWN, VERTICES_DRAWN = 12_000, 400_000
"""At most, so that a page stays below 20 MB and moves at once."""
WIDEST = 3.0
"""The longer side of a map to the shorter, at most."""
SQUARES_DRAWN = 20_000
"""Of tiles, at most: where there are more, a square stands for several."""
ATTRIBUTES = {
    "prompt": "asked for",
    "phrase": "phrase",
    SCORE: "score",
    "mask_score": "mask score",
    "area_m2": "area",
    "perimeter_m": "perimeter",
    "datetime": "seen",
    "scene_ids": "items",
    "touches_edge": "touches the edge",
    "part_of": "part of",
    "id": "id",
}
"""Columns of features.parquet that a tooltip shows, by the words it shows them with."""
FAINT = "#9aa0a8"

_UNITS = {"area_m2": " m\u00b2", "perimeter_m": " m"}
_BACKDROP_QUALITY, _THUMBNAIL = 82, 900


@dataclass(frozen=True, slots=True)
class Page:
    """Where things are drawn: metres east and north of the lower left corner of the backdrop."""

    backdrop: Backdrop

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in metres."""
        height, width = self.backdrop.geobox.shape
        across, down = self.backdrop.metres
        return width * across, height * down

    @property
    def view(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of what is shown first: all of it, and beside it what makes WIDEST of a strip."""
        width, height = self.size
        wide, high = max(width, height / WIDEST), max(height, width / WIDEST)
        return (width - wide) / 2, (width + wide) / 2, (height - high) / 2, (height + high) / 2

    def place(self, coordinates: np.ndarray) -> np.ndarray:
        """(n, 2) x and y in the backdrop's CRS on the page, to a tenth of its pixels."""
        columns, rows = ~self.backdrop.geobox.affine @ (coordinates[:, 0], coordinates[:, 1])
        across, down = self.backdrop.metres
        digits = max(0, int(np.ceil(-np.log10(across / 10))))
        return np.column_stack([columns * across, (self.backdrop.geobox.shape[0] - rows) * down]).round(digits)

    def polygons(self, shapes: Sequence[Geometry] | np.ndarray) -> dict[str, list[Any]]:
        """xs and ys as nested lists: shape, polygon, ring (the outer one first), vertex."""
        placed = shapely.transform(np.asarray(shapes, dtype=object), self.place)
        rings = [[[shapely.get_coordinates(ring).T.tolist() for ring in shapely.get_rings(part)] for part in shapely.get_parts(shape)] for shape in placed]
        return {name: [[[ring[axis] for ring in part] for part in shape] for shape in rings] for axis, name in enumerate(("xs", "ys"))}


def draw_map(page: Page, features: gpd.GeoDataFrame, prompts: Sequence[str], area: Geometry) -> tuple[figure, dict[str, dict[str, list[Any]]]]:
    """Features over the imagery; layer-0, layer-1, ... are the prompts, imagery the backdrop. features: as drawn_features has them.

    And the columns of the layers by their name, which the page puts in: Bokeh's own encoder takes microseconds for every number.
    """
    plot = _ground(page, "imagery", Image.fromarray(page.backdrop.rgb))
    shown = {column: label for column, label in ATTRIBUTES.items() if column in features.columns}
    layers, columns = [], {}
    for index, prompt in enumerate(prompts):
        own = features[(features["prompt"] == prompt).to_numpy()]
        name = f"layer-{index}"
        columns[name] = page.polygons(own.geometry.to_numpy()) | {column: [_words(column, value) for value in own[column]] for column in shown}
        source = ColumnDataSource({column: [] for column in columns[name]})
        style = {"fill_color": colour(index), "line_color": colour(index), "fill_alpha": 0.25, "hover_fill_alpha": 0.6, "hover_line_color": INK}
        layers.append(plot.multi_polygons("xs", "ys", source=source, name=name, **style))
    plot.multi_polygons(**page.polygons([area]), fill_alpha=0, line_color=OUTLINE, line_width=1.5)
    plot.add_tools(HoverTool(renderers=layers, tooltips=[(label, f"@{column}") for column, label in shown.items()], point_policy="follow_mouse"))
    return plot, columns


def drawn_features(features: gpd.GeoDataFrame, backdrop: Backdrop, resolution: float) -> tuple[gpd.GeoDataFrame, float]:
    """The features that a page has room for, in the backdrop's CRS: of every prompt in turn the largest that is left, until FEATURES_DRAWN or
    VERTICES_DRAWN is reached; one that alone has too many vertices is passed over. And by how much they are simplified, in units of that CRS:
    half a pixel of the grid, whose edge is resolution, or of the backdrop where that leaves too many vertices."""
    rank = features.groupby("prompt")["area_m2"].rank(ascending=False, method="first")
    first = features.iloc[np.argsort(rank.to_numpy(), kind="stable")[:FEATURES_DRAWN]].to_crs(str(backdrop.geobox.crs))
    for tolerance in (resolution / 2, abs(backdrop.geobox.affine.a) / 2):
        shapes = shapely.simplify(first.geometry.to_numpy(), tolerance)
        counts = shapely.get_num_coordinates(shapes)
        if counts.sum() <= VERTICES_DRAWN:
            break
    fits, vertices = [], 0
    for count in counts.tolist():
        fits.append(vertices + count <= VERTICES_DRAWN)
        vertices += count if fits[-1] else 0
    return first.set_geometry(gpd.GeoSeries(shapes, index=first.index, crs=first.crs))[np.array(fits, bool)], tolerance


def draw_coverage(page: Page, tiles: Tiles, states: Sequence[State], reasons: Sequence[str], area: Geometry) -> tuple[figure, int]:
    """Tiles in the colours of their states, and how many pixels the squares measure that stand for several; 0: every tile is its own."""
    squares, edge = coverage_squares(tiles, states, reasons)
    backdrop = page.backdrop
    thumbnail = Image.fromarray(backdrop.rgb)
    thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
    plot = _ground(page, "ground", thumbnail)
    resolution = tiles.grid.resolution
    left, bottom = page.place(np.column_stack([squares["left"], -(squares["top"] + squares["size"])]) * resolution).T
    right, top = page.place(np.column_stack([squares["left"] + squares["size"], -squares["top"]]) * resolution).T
    source = {"left": left, "right": right, "bottom": bottom, "top": top, "text": squares["text"].tolist()}
    source["colour"] = squares["state"].map(STATE_COLOURS).tolist()
    quads = plot.quad("left", "right", "top", "bottom", source=source, fill_color="colour", fill_alpha=0.55, line_color=PAPER, line_width=0.5, name="tiles")
    plot.multi_polygons(**page.polygons([area]), fill_alpha=0, line_color=OUTLINE, line_width=1.5)
    plot.add_tools(HoverTool(renderers=[quads], tooltips=[("tile", "@text")], point_policy="follow_mouse"))
    return plot, edge


def coverage_squares(tiles: Tiles, states: Sequence[State], reasons: Sequence[str]) -> tuple[pd.DataFrame, int]:
    """Squares with left, top, size (pixels of the grid), state and text, SQUARES_DRAWN at most: the tiles, or the squares of the quadtree that
    they lie in. A square of several is failed where any of them is, else what most of them are. And the edge of these squares; 0: the tiles."""
    size, edge = tiles.size.astype(np.int64), int(tiles.size.min())
    while True:
        side = np.maximum(size, edge)
        keys = np.column_stack([side, tiles.left // side * side, tiles.top // side * side])
        squares, owner = np.unique(keys, axis=0, return_inverse=True)
        if len(squares) <= SQUARES_DRAWN:
            break
        edge *= 2
    owner = owner.ravel()
    counts = np.zeros((len(squares), len(STATES)), np.int64)
    np.add.at(counts, (owner, np.array([STATES.index(state) for state in states])), 1)
    most = np.where(counts[:, STATES.index("failed")] > 0, STATES.index("failed"), counts.argmax(axis=1))
    first = np.zeros(len(squares), np.int64)
    first[owner] = np.arange(len(tiles))
    texts = []
    for index, row in zip(first.tolist(), counts.tolist(), strict=True):
        if sum(row) == 1:
            texts.append(f"{tiles[index].id}: {states[index]}{f', {reasons[index]}' if reasons[index] else ''}")
        else:
            texts.append(f"{sum(row)} tiles: " + ", ".join(f"{count} {state}" for state, count in zip(STATES, row, strict=True) if count))
    named = [STATES[index] for index in most]
    table = pd.DataFrame({"left": squares[:, 1], "top": squares[:, 2], "size": squares[:, 0], "state": named, "text": texts})
    return table, edge if len(squares) < len(tiles) else 0


def draw_histogram(title: str, values: np.ndarray, owners: np.ndarray, prompts: Sequence[str], edges: np.ndarray, name: str, *, log: bool = False) -> figure:
    """How the features of each prompt are spread over the bins, in percent; {name}-0, {name}-1, ... are the prompts. Values beyond the edges
    count in the outer bins."""
    kind = "log" if log else "linear"
    plot = figure(height=240, sizing_mode="stretch_width", x_axis_type=kind, x_range=Range1d(*edges[[0, -1]]), tools="", toolbar_location=None)
    _dress(plot)
    plot.xaxis.axis_label, plot.yaxis.axis_label = title, "% of the features"
    plot.y_range.start = 0
    for index, prompt in enumerate(prompts):
        own = np.clip(values[owners == prompt], edges[0], edges[-1])
        if len(own):
            share = 100 * np.histogram(own, edges)[0] / len(own)
            plot.step(edges, np.append(share, share[-1]), mode="after", line_color=colour(index), line_width=2, name=f"{name}-{index}")
    return plot


def _ground(page: Page, name: str, picture: Image.Image) -> figure:
    """A figure with the picture on all of it, to pan and zoom; true to scale."""
    sink = BytesIO()
    picture.save(sink, "jpeg", quality=_BACKDROP_QUALITY)
    width, height = page.size
    left, right, bottom, top = page.view
    wheel = WheelZoomTool(zoom_on_axis=False, maintain_focus=False)
    plot = figure(
        sizing_mode="stretch_both",
        x_range=Range1d(left, right),
        y_range=Range1d(bottom, top),
        tools=[PanTool(), wheel, BoxZoomTool(match_aspect=True), "reset"],
        active_scroll=wheel,
        toolbar_location="above",
        toolbar_inner=True,  # a bar of its own would take height from the frame, and with it the true scale
        min_border=0,
    )
    _dress(plot)
    plot.axis.visible = False
    plot.grid.visible = False
    plot.toolbar.logo = None
    plot.toolbar.stylesheets = [":host(.bk-inner) { width: max-content !important; margin: 8px 8px 0 auto; padding: 0 4px; border-radius: 6px; }"]
    address = "data:image/jpeg;base64," + b64encode(sink.getvalue()).decode()
    plot.image_url(url=[address], x=0, y=0, w=width, h=height, anchor="bottom_left", name=name)
    bar = {"background_fill_alpha": 0.6, "background_fill_color": PAPER, "border_line_color": None, "bar_line_color": INK, "label_text_color": INK}
    plot.add_layout(ScaleBar(range=plot.x_range, unit="m", location="bottom_left", **bar))
    return plot


def _dress(plot: figure) -> None:
    plot.background_fill_color = plot.border_fill_color = PAPER
    plot.outline_line_color = None
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = FAINT
        axis.axis_line_color = axis.major_tick_line_color = axis.minor_tick_line_color = FAINT
        axis.axis_label_text_font_style = "normal"
    plot.grid.grid_line_color = "#33373d"


def _words(column: str, value: Any) -> str:
    """A value as a tooltip shows it."""
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)) or value is pd.NaT:
        return "-"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}"
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}{_UNITS[column]}" if column in _UNITS else f"{value:.2f}"
    if isinstance(value, list | np.ndarray):
        return ", ".join(map(str, value[:3])) + (f" and {len(value) - 3} more" if len(value) > 3 else "")
    return str(value)
