"""Makes the bundled model: from scratch on rendered scenes (scratch.py), then on those and real imagery together (adaptation.py). Knows the model,
the demo's renderer and what real imagery says of itself (real.py); nothing of tiles, catalogs or Ray."""

from geopixel.training.adaptation import STAGES, Stage, adapt_nano
from geopixel.training.scratch import train_nano

__all__ = ["STAGES", "Stage", "adapt_nano", "train_nano"]
