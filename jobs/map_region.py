"""One area in, one run folder out: see --help."""

from __future__ import annotations

import sys
from dataclasses import fields

from geopixel.aoi import read_area
from geopixel.config import DEMO, MapSettings, load_settings
from geopixel.errors import GeoPixelError


def main() -> int:
    settings = load_settings()
    try:
        return map_region(settings)
    except (GeoPixelError, ValueError) as error:
        print(f"map_region: error: {error}", file=sys.stderr)
        return 2


def map_region(settings: MapSettings) -> int:
    """0: a map without holes; 1: some tiles failed and are in coverage.parquet."""
    catalog, aoi = settings.catalog, settings.aoi
    if catalog == DEMO:
        from geopixel.demo import demo_catalog

        path = demo_catalog()
        catalog, aoi = str(path), aoi or str(path.with_name("aoi.geojson"))
    assert aoi is not None, "settings ask for an area unless the demo brings its own"
    area = read_area(aoi, warn=lambda line: print(f"map_region: {line}", file=sys.stderr))

    from geopixel import distributed
    from geopixel.console import ProgressDisplay, print_plan, print_summary
    from geopixel.model.config import default_model, read_model_config
    from geopixel.pipeline import MapRequest, make_plan, map_area
    from geopixel.storage import Folder

    if settings.model is not None:
        read_model_config(settings.model)  # an unknown model is refused before a cluster starts
    distributed.start()
    runner = distributed.RayRunner()
    model = settings.model or default_model(runner.device)
    config = read_model_config(model)
    shared = {field.name for field in fields(MapRequest)} & MapSettings.model_fields.keys() - {"catalog", "model"}
    request = MapRequest(area, settings.prompt, catalog, model, **{name: getattr(settings, name) for name in sorted(shared)})
    with ProgressDisplay() as progress:
        if settings.dry_run:
            plan = make_plan(request, config, runner, progress)
        else:
            folder = Folder(settings.out)
            summary = map_area(request, folder, config, runner, progress)
    if settings.dry_run:
        print_plan(plan)
        return 0
    print_summary(summary, folder)
    if failed := summary.tiles["failed"]:
        print(f"map_region: {failed} tiles failed: see their reason in {folder.url}/coverage.parquet; run again to try them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
