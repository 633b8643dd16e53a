"""index.html: a country's cells on one page, in the colours of what became of them; a click opens the report of a cell's run. Knows a table of cells;
nothing of how they were mapped. Asks no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import geopandas as gpd
import numpy as np
import shapely
from jinja2 import Template
from shapely import Geometry

from geopixel.publish.backdrop import INK, OUTLINE, PAPER, STATE_COLOURS
from geopixel.publish.report import REPORT
from geopixel.storage import Folder

OVERVIEW = "index.html"
CELL_COLOURS = {
    "mapped": STATE_COLOURS["ok"],
    "nodata": STATE_COLOURS["nodata"],
    "holes": "#ff8a1f",
    "failed": STATE_COLOURS["failed"],
    "begun": STATE_COLOURS["empty"],
    "planned": STATE_COLOURS["outside"],
}
LONGEST = 1000
"""Pixels along the longer side of the drawing."""
VERTICES = 20_000
"""Of the outline, at most about so many: it is simplified until it has."""
_PAGE = Template(
    """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>{{ bokeh_js | safe }}
<style>body {background: {{ paper }}; color: {{ ink }}; font: 15px system-ui, sans-serif; margin: 2em; max-width: 1100px}
td, th {padding: .2em 1.2em .2em 0; text-align: left} i {display: inline-block; width: .9em; height: .9em; margin-right: .6em}</style></head>
<body><h1>{{ title }}</h1>
<table>{% for name, value in facts %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}</table>
<p>{% for state, colour, count in states %}<i style="background: {{ colour }}"></i>{{ count }} {{ state }} &ensp; {% endfor %}
A click on a cell opens the report of its run.</p>
{{ plot_div | safe }}{{ plot_script | safe }}</body></html>""",
    autoescape=True,
)


def store_overview(folder: Folder, title: str, cells: gpd.GeoDataFrame, area: Geometry, facts: Sequence[tuple[str, str]]) -> None:
    """Writes index.html. cells: columns cell, state, reason, shown (run id or None), features and tiles_STATE, polygons in a projected or geographic
    CRS; area: in the same. facts: what stands in the table above the drawing."""
    from bokeh.embed import components  # Bokeh takes a second to load
    from bokeh.models import HoverTool, OpenURL, TapTool
    from bokeh.plotting import figure
    from bokeh.resources import Resources

    left, bottom, right, top = cells.total_bounds
    scale = LONGEST / max(right - left, top - bottom)
    plot = figure(
        width=max(300, round((right - left) * scale)),
        height=max(300, round((top - bottom) * scale)),
        match_aspect=True,
        tools="pan,wheel_zoom,box_zoom,reset",
        active_scroll="wheel_zoom",
        background_fill_color=PAPER,
        border_fill_color=PAPER,
        outline_line_color=None,
    )
    plot.axis.visible = plot.grid.visible = False
    quads = plot.quad("left", "right", "top", "bottom", source=_columns(cells), fill_color="colour", fill_alpha=0.75, line_color=PAPER, line_width=0.3)
    shapes = [part for part in shapely.get_parts(_drawable(area)) if part.geom_type == "Polygon"]
    rings = [[[shapely.get_coordinates(ring)[:, axis].tolist() for ring in shapely.get_rings(part)] for part in shapes] for axis in (0, 1)]
    plot.multi_polygons([rings[0]], [rings[1]], fill_alpha=0, line_color=OUTLINE, line_width=1)
    told = [("cell", "@cell"), ("state", "@state"), ("", "@reason"), ("features", "@features"), ("tiles", "@tiles")]
    plot.add_tools(HoverTool(renderers=[quads], tooltips=told), TapTool(renderers=[quads], callback=OpenURL(url="@report")))
    script, div = components(plot)
    counts = cells["state"].value_counts()
    html = _PAGE.render(
        title=title,
        facts=facts,
        states=[(state, shade, int(counts[state])) for state, shade in CELL_COLOURS.items() if state in counts],
        bokeh_js=Resources(mode="inline", components=["bokeh"]).render_js(),
        plot_div=div,
        plot_script=script,
        paper=PAPER,
        ink=INK,
    )
    folder.put(OVERVIEW, html.encode())


def _columns(cells: gpd.GeoDataFrame) -> Mapping[str, object]:
    bounds = cells.bounds
    tiles = [column for column in cells.columns if column.startswith("tiles_")]
    said = [", ".join(f"{count} {name.removeprefix('tiles_')}" for name, count in row.items() if count) for row in cells[tiles].to_dict("records")]
    reports = [f"cells/{cell}/{run}/{REPORT}" if isinstance(run, str) else f"#{cell}" for cell, run in zip(cells["cell"], cells["shown"], strict=True)]
    sides = {name: bounds[column].tolist() for name, column in (("left", "minx"), ("right", "maxx"), ("top", "maxy"), ("bottom", "miny"))}
    texts = {name: cells[name].tolist() for name in ("cell", "state", "reason", "features")}
    return sides | texts | {"colour": cells["state"].map(CELL_COLOURS).tolist(), "tiles": said, "report": reports}


def _drawable(area: Geometry) -> Geometry:
    """The outline, coarse enough to be drawn at once."""
    left, bottom, right, top = area.bounds
    for tolerance in max(right - left, top - bottom) / np.array([8000, 4000, 2000, 1000]):
        if shapely.get_num_coordinates(area) <= VERTICES:
            break
        area = shapely.simplify(area, tolerance)
    return area
