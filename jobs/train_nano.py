"""Trains the bundled nano model from scratch on rendered scenes and writes its weights."""

from __future__ import annotations

import argparse
from pathlib import Path

from geopixel.training import train_nano


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("geopixel/model/weights/nano"), help="folder of the checkpoint (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="folder of the rendered scenes (default: %(default)s)")
    parser.add_argument("--tower-steps", type=int, default=500, help="steps of the towers alone (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1300, help="steps of the whole (default: %(default)s)")
    parser.add_argument("--sharpen-steps", type=int, default=660, help="last steps, with the towers fixed (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images a step (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=120, help="rendered scenes to draw images from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and examples (default: %(default)s)")
    arguments = parser.parse_args()
    train_nano(**vars(arguments))


if __name__ == "__main__":
    main()
