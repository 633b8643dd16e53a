"""The steps of the pipeline and of fine-tuning (finetune.py, which loads torch where it trains) on Ray: the only room that imports ray."""

from geopixel.distributed.runner import RayRunner, start

__all__ = ["RayRunner", "start"]
