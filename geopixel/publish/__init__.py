"""Shows a finished run to people and to catalogs: item.json, a STAC Item that names what the run made, of what ground and from what; quicklook.png,
a picture of it; report.html, a page to look around in; captions.parquet, what every tile shows in words; of many runs collection.json, a STAC
Collection of their items, and index.html, all of them on one page. Knows the run folder; nothing of how what is in it came about."""

from geopixel.publish.backdrop import COLOURS, INK, PAPER, Backdrop, read_backdrop
from geopixel.publish.captions import CAPTIONS, MARKER, store_captions
from geopixel.publish.collection import COLLECTION, join_collection, store_collection
from geopixel.publish.item import ITEM, store_item
from geopixel.publish.overview import OVERVIEW, store_overview
from geopixel.publish.quicklook import QUICKLOOK, draw_quicklook
from geopixel.publish.report import REPORT, store_report

__all__ = [
    "CAPTIONS",
    "COLLECTION",
    "COLOURS",
    "INK",
    "ITEM",
    "MARKER",
    "OVERVIEW",
    "PAPER",
    "QUICKLOOK",
    "REPORT",
    "Backdrop",
    "draw_quicklook",
    "join_collection",
    "read_backdrop",
    "store_captions",
    "store_collection",
    "store_item",
    "store_overview",
    "store_report",
]
