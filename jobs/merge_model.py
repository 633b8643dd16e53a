"""Writes what a training changed into its base: a whole model, that every command takes as --model. Fine-tuning does it at its end; this is for a
training that was stopped, and for trained weights that were moved to where their base is."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from geopixel.console import ProgressDisplay
from geopixel.errors import GeoPixelError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trained", metavar="TRAINED", type=Path, help="trained.safetensors, or the folder of a training: its newest checkpoint counts")
    parser.add_argument("out", metavar="OUT", type=Path, help="local folder to write, new or empty")
    parser.add_argument("--base", metavar="nano|PATH|HUB_ID", help="where the base is now (default: where it was in the training)")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights: float32, bfloat16 or float16 (default: %(default)s)")
    arguments = parser.parse_args()

    from geopixel.finetuning.trained import find_trained, merge
    from geopixel.model.checkpoint import parse_dtype

    try:
        dtype, out = parse_dtype(arguments.dtype), arguments.out
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ValueError(f"a model is written to a new or an empty folder, got {out}")
        with ProgressDisplay() as display:
            merge(find_trained(arguments.trained), out, dtype, arguments.base, partial(display, "tensors"))
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"merge_model: error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {arguments.dtype}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
