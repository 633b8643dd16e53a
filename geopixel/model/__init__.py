"""GeoPixel, a multimodal model that grounds language in pixels of remote-sensing images: `from geopixel.model import GeoPixel`.

The names are imported when first used: reading the sizes of a model (geopixel.model.config) must not load torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopixel.model.geopixel import Answer, GeoPixel

__all__ = ["Answer", "GeoPixel"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from geopixel.model import geopixel

        return getattr(geopixel, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
