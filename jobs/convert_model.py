"""Converts a published checkpoint, once, to the layout that loads fastest; either can be named as a model afterwards."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from geopixel.console import ProgressDisplay
from geopixel.errors import GeoPixelError
from geopixel.storage import Folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="hub id or folder of a model")
    parser.add_argument("out", metavar="OUT", help="local folder to write, new or empty")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights: float32, bfloat16 or float16 (default: %(default)s)")
    arguments = parser.parse_args()

    from geopixel.model.checkpoint import parse_dtype
    from geopixel.model.config import find_model
    from geopixel.model.convert import convert

    try:
        dtype, out = parse_dtype(arguments.dtype), Folder.at(arguments.out)
        if not out.is_local:
            raise ValueError(f"OUT must be a local folder, got {out.url}")
        with ProgressDisplay() as display:
            size = convert(find_model(arguments.source), Path(out.url), dtype, partial(display, "tensors"))
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"convert_model: error: {error}", file=sys.stderr)
        return 2
    print(f"{out.url}: {size / 1e9:.3g} GB of {arguments.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
