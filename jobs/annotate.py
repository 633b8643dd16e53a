"""Imagery and labelled polygons in, training samples out: see --help."""

from __future__ import annotations

import sys
from pathlib import Path

from geopixel.annotation.settings import IMAGERY, AnnotateSettings, load_settings, split_label
from geopixel.config import DEMO
from geopixel.errors import GeoPixelError


def main() -> int:
    settings = load_settings()
    try:
        counts = annotate(settings)
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"annotate: error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    from geopixel.console import print_scores

    print_scores(f"samples in {settings.out}", counts)
    print(f"to look at: {settings.out}/samples.html; to rewrite: {settings.out}/review.jsonl, then annotate.py --review {settings.out}")
    return 0


def annotate(settings: AnnotateSettings) -> dict[str, int]:
    from geopixel import annotation
    from geopixel.aoi import read_area
    from geopixel.console import ProgressDisplay
    from geopixel.search import find_scenes
    from geopixel.tiling import choose_grid

    out, wanted = Path(settings.out).expanduser(), {name: getattr(settings, name) for name in annotation.Wanted.__dataclass_fields__}
    annotation.check_new(out)
    with ProgressDisplay() as progress:
        if settings.review is not None:
            return annotation.review_samples(Path(settings.review).expanduser(), out, progress)
        catalog, window = settings.catalog, settings.window
        if catalog == DEMO:
            from geopixel.demo import demo_catalog

            path = demo_catalog()
            catalog, window = str(path), window or str(path.with_name("aoi.geojson"))
        ground = None if window is None else read_area(window, warn=warn)
        if settings.labels:
            labels = annotation.read_labels([split_label(text) for text in settings.labels], settings.class_column, warn)
        else:
            assert ground is not None, "settings ask for labels unless the demo brings its own, with its window"
            labels = annotation.rendered_labels(str(catalog), ground)
        ground = labels.extent if ground is None else ground
        chosen = {name: getattr(settings, name) for name in IMAGERY}
        crs, resolution, profile = chosen.pop("crs"), chosen.pop("resolution"), chosen.pop("profile")
        if settings.images is not None:
            scenes = annotation.folder_scenes(Path(settings.images).expanduser(), settings.bands, settings.stretch)
        else:
            scenes = find_scenes(str(catalog), ground, profile=profile and Path(profile).expanduser().read_text(), **chosen)
        grid = choose_grid(scenes, crs, resolution)
        about = {"labels": list(settings.labels), "imagery": settings.images or settings.catalog}
        return annotation.annotate(out, scenes, grid, labels, ground, annotation.Wanted(**wanted), progress, about)


def warn(line: str) -> None:
    print(f"annotate: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
