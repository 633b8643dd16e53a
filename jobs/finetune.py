"""Labelled pictures, or imagery and labels of an area, in; a model that knows them out: see --help."""

from __future__ import annotations

import sys
from functools import partial

from geopixel.config import load
from geopixel.config.finetune import FineTuneSettings
from geopixel.errors import GeoPixelError


def main() -> int:
    settings = load(FineTuneSettings)
    try:
        return finetune(settings)
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"finetune: error: {error}", file=sys.stderr)
        return 2


def finetune(settings: FineTuneSettings) -> int:
    """0: the model is in --out."""
    from geopixel.console import ProgressDisplay
    from geopixel.distributed import RayRunner
    from geopixel.distributed.finetune import train_on_ray
    from geopixel.finetuning.submission import prepare, publish
    from geopixel.lease import hold
    from geopixel.model.config import default_model
    from geopixel.storage import Folder

    with ProgressDisplay() as display:
        model = settings.model or default_model(RayRunner().device)
        submission = prepare(settings.model_dump(), model, partial(display, "chips"))
        with hold(Folder.at(str(submission.work))):
            trained = train_on_ray(submission.job, submission.work, settings.workers, partial(display, "steps"))
            publish(submission, trained, partial(display, "weights"))
    print(submission.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
