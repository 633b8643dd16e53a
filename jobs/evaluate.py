"""Measures a finished map against what is known to be there (--run), or a model on a data set (--dataset, or --images with --masks).
Figures in --json are shares of 1; tables of data sets print percent, as papers do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from geopixel import evaluation
from geopixel.console import ProgressDisplay, print_map_scores, print_scores
from geopixel.errors import GeoPixelError
from geopixel.storage import Folder


def main() -> int:
    arguments = parser().parse_args()
    try:
        evaluation.refuse_foreign(vars(arguments))
        report = score_model(arguments) if arguments.run is None else score_run(arguments)
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"evaluate: error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps(report))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="RUN", help="finished map: a run folder, a path or a URL")
    what.add_argument("--dataset", metavar=("NAME", "FOLDER"), nargs=2, help=f"published data set, {', '.join(evaluation.DATASETS)}, as it unpacks")
    what.add_argument("--images", metavar="DIR", type=Path, help="pictures; needs --masks and --prompt")
    parser.add_argument("--prompt", metavar="TEXT", help="what to score or ask for (with --run default: every prompt of the run)")
    parser.add_argument("--json", action="store_true", help="print one JSON object of all figures on the last line")
    maps = parser.add_argument_group("with --run")
    maps.add_argument("--labels", metavar="FILE", type=Path, help="polygons of the prompt, any vector format (default: the truth of the demo's scenes)")
    maps.add_argument("--window", metavar="FILE", type=Path, help="polygons of the ground on which the labels are complete (default: the run's area)")
    models = parser.add_argument_group("with --dataset or --images")
    models.add_argument("--masks", metavar="DIR", type=Path, help="a mask for every picture, PNG or TIFF of the same name, not 0 where the prompt is")
    models.add_argument("--split", choices=("train", "val", "test"), default="test", help="of the data set (default: %(default)s)")
    models.add_argument("--model", metavar="nano|PATH|HUB_ID", help="default: MBZUAI/GeoPixel-7B where CUDA is there, else nano")
    models.add_argument("--limit", metavar="N", type=int, help="only the first N samples")
    models.add_argument("--embedder", metavar="NAME", default="bert-base-uncased", help="compares phrases: a BERT, or words (default: %(default)s)")
    return parser


def score_run(arguments: argparse.Namespace) -> dict[str, Any]:
    labels, window = arguments.labels, arguments.window
    if labels is not None and arguments.prompt is None:
        raise ValueError("--labels are polygons of one prompt: say which with --prompt")
    if window is not None and labels is None:
        raise ValueError("--window says where --labels are complete: give both")
    truth = evaluation.rendered_truth if labels is None else lambda run, _: evaluation.read_truth(labels, window, run)
    report = evaluation.evaluate_run(Folder.at(arguments.run), truth, arguments.prompt)
    print_map_scores(report)
    return report


def score_model(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.images and not (arguments.masks and arguments.prompt):
        raise ValueError("--images needs --masks and --prompt")
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {arguments.limit}")
    if arguments.dataset:
        kind, folder = arguments.dataset
        samples, name = evaluation.read_dataset(kind, Path(folder), arguments.split), f"{kind} {arguments.split}"
    else:
        samples, name = evaluation.read_chips(arguments.images, arguments.masks, arguments.prompt), f"{arguments.prompt} in {arguments.images}"
    with ProgressDisplay() as progress:
        model, scores = evaluation.evaluate_model(arguments.model, samples[: arguments.limit], arguments.embedder, progress)
    print_scores(f"{model} on {name}", scores)
    return {"model": model, "data": name, **scores}


if __name__ == "__main__":
    sys.exit(main())
