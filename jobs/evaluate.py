"""Compares a finished run with what is known to be there and prints the intersection over union of every prompt."""

from __future__ import annotations

import argparse
import sys

from geopixel.evaluation import evaluate, polygon_truth, rendered_truth
from geopixel.pipeline import load_run
from geopixel.storage import Folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder: a path or a URL")
    parser.add_argument("--truth", metavar="FILE", help="polygons of the (one) prompt, in any vector format (default: the truth of the demo catalog)")
    arguments = parser.parse_args()
    folder = Folder.at(arguments.run)
    try:
        scores = evaluate(folder, polygon_truth(arguments.truth) if arguments.truth else rendered_truth(load_run(folder)))
    except FileNotFoundError:
        print(f"evaluate: error: {folder.url} holds no finished run", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"evaluate: error: {error}", file=sys.stderr)
        return 2
    for prompt, score in scores.items():
        print(f"{prompt:>20}: IoU {score.iou:.3f} ({score.found} pixels found, {score.true} true)")
    print(f"{'mean':>20}: IoU {sum(score.iou for score in scores.values()) / len(scores):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
