"""Teaches a GeoPixel one's own things by the published recipe: samples (samples.py, area.py), what is trained and how (recipe.py), the steps
(loop.py), the files that come of it (trained.py, curves.py). Knows no Ray; distributed/finetune.py runs the same loop on a cluster."""

from geopixel.finetuning.area import cut_area, plan_chips
from geopixel.finetuning.curves import Curves, model_card, read_log
from geopixel.finetuning.loop import Job, World, check_workers, train
from geopixel.finetuning.recipe import Recipe
from geopixel.finetuning.samples import Lesson, hold_out, read_class_chips, read_published
from geopixel.finetuning.trained import TRAINED, merge

__all__ = [
    "TRAINED",
    "Curves",
    "Job",
    "Lesson",
    "Recipe",
    "World",
    "check_workers",
    "cut_area",
    "hold_out",
    "merge",
    "model_card",
    "plan_chips",
    "read_class_chips",
    "read_log",
    "read_published",
    "train",
]
