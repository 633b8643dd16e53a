"""Trains nano: from scratch on rendered scenes (the default), or with --real on those and real imagery together, from the weights that --start holds,
as the bundled ones were made."""

from __future__ import annotations

import argparse
from pathlib import Path

from geopixel.errors import GeoPixelError
from geopixel.training import STAGES, Stage, adapt_nano, train_nano

BUNDLED = Path("geopixel/model/weights/nano")
PICTURES = ("3100", "400", "8", "1.5e-3")
WORDS = ("900", "250", "4", "1e-3")
TOGETHER = ("400", "250", "4", "5e-4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED, help="folder of the checkpoint (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="folder of rendered scenes and of what is resumed (default: %(default)s)")
    parser.add_argument("--scenes", type=int, help="rendered scenes to draw images from (default: 120; with --real 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and examples (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images a step, from scratch (default: %(default)s)")
    parser.add_argument("--tower-steps", type=int, default=500, help="steps of the towers alone (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1300, help="steps of the whole (default: %(default)s)")
    parser.add_argument("--sharpen-steps", type=int, default=660, help="last steps, with the towers fixed (default: %(default)s)")
    real = parser.add_argument_group("with --real: every stage is STEPS DECAY BATCH RATE, the learning rate falls over the last DECAY steps")
    real.add_argument("--real", metavar="DIR", type=Path, help="labelled imagery: training/buildings, training/dubai, imagery/naip-north-dakota in it")
    real.add_argument("--start", metavar="DIR", type=Path, default=BUNDLED, help="checkpoint to go on from (default: %(default)s)")
    real.add_argument("--leave-out", metavar="SITE", nargs="*", default=["banepa"], help="sites whose buildings are not seen (default: %(default)s)")
    real.add_argument("--anew", action="store_true", help="begin SAM 2's image encoder anew, from ImageNet's weights, and keep all else of --start")
    real.add_argument("--kept", type=float, default=0.0, help="share of --start in what is written, the mean of both (default: %(default)s)")
    for name, what, default in (
        ("pictures", "SAM 2 alone on small windows", PICTURES),
        ("words", "CLIP tower and language model alone", WORDS),
        ("together", "everything", TOGETHER),
    ):
        real.add_argument(f"--{name}", nargs=4, metavar=("STEPS", "DECAY", "BATCH", "RATE"), default=default, help=f"{what} (default: {' '.join(default)})")
    real.add_argument("--device", default="cpu", help="where to train: cpu or cuda (default: %(default)s)")
    real.add_argument("--workers", type=int, default=0, help="processes that draw windows (default: the one that trains)")
    arguments = vars(parser.parse_args())
    data, start, leave_out = arguments.pop("real"), arguments.pop("start"), tuple(arguments.pop("leave_out"))
    device, workers, anew = arguments.pop("device"), arguments.pop("workers"), arguments.pop("anew")
    kept = arguments.pop("kept")
    stages = {name: arguments.pop(name) for name in STAGES}
    try:
        if data is None:
            train_nano(**arguments | {"scenes": 120 if arguments["scenes"] is None else arguments["scenes"]})
            return
        adapt_nano(
            start,
            arguments["out"],
            arguments["work"],
            data,
            scenes=60 if arguments["scenes"] is None else arguments["scenes"],
            seed=arguments["seed"],
            leave_out=leave_out,
            anew=anew,
            kept=kept,
            device=device,
            workers=workers,
            stages={name: Stage(int(steps), int(decay), int(batch), float(rate)) for name, (steps, decay, batch, rate) in stages.items()},
        )
    except (GeoPixelError, ValueError, OSError) as error:
        parser.exit(2, f"train_nano: error: {error}\n")


if __name__ == "__main__":
    main()
