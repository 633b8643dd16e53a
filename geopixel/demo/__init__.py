"""Rendered, aerial-like scenes with known truth, and their static STAC catalog. Knows nothing of the model, tiles or Ray.

Training draws its seeds from TRAINING_SEEDS; the demo catalog shows DEMO_SEEDS, which training never sees.
"""

from geopixel.demo.catalog import DEMO_SEEDS, TRAINING_SEEDS, demo_catalog, write_catalog
from geopixel.demo.paint import CLASSES
from geopixel.demo.render import RenderedScene, render_scene

__all__ = ["CLASSES", "DEMO_SEEDS", "TRAINING_SEEDS", "RenderedScene", "demo_catalog", "render_scene", "write_catalog"]
