"""The steps of the pipeline on Ray: the only room that imports ray."""

from geopixel.distributed.runner import RayRunner, start

__all__ = ["RayRunner", "start"]
