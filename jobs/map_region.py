"""One area in, one run folder out: see --help."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from geopixel.aoi import read_area
from geopixel.config import DEMO, MapSettings, load
from geopixel.errors import GeoPixelError


def main() -> int:
    settings = load(MapSettings)
    try:
        return map_region(settings)
    except (GeoPixelError, ValueError) as error:
        print(f"map_region: error: {error}", file=sys.stderr)
        return 2


def map_region(settings: MapSettings) -> int:
    """0: a map without holes; 1: some tiles failed and are in coverage.parquet, and nothing is published unless holes are allowed."""
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
    from geopixel.pipeline import Limits, MapRequest, make_plan, map_area, model_of, store_dry_plan
    from geopixel.storage import Folder

    if settings.model is not None:
        read_model_config(settings.model)  # an unknown model is refused before a cluster starts
    actors = {name: getattr(settings, name) for name in ("gpus_per_actor", "min_actors", "max_actors", "max_attempts")}
    runner, folder = distributed.RayRunner(**actors), Folder(settings.out)
    model = settings.model or model_of(folder) or default_model(runner.device)
    config = read_model_config(model)
    names = {field.name for field in fields(MapRequest)} & MapSettings.model_fields.keys() - {"prompt", "catalog", "model", "profile"}
    profile = None if settings.profile is None else Path(settings.profile).expanduser().read_text()
    request = MapRequest(area, settings.prompt, catalog, model, profile=profile, **{name: getattr(settings, name) for name in names})
    limits = Limits(settings.allow_hosts, settings.max_items, settings.max_vertices, settings.max_tiles)
    with ProgressDisplay() as progress:
        if settings.dry_run:
            plan = make_plan(request, config, runner, progress, limits)
        else:
            summary = map_area(request, folder, config, runner, progress, retry_failed=settings.retry_failed, limits=limits)
    if settings.dry_run:
        print_plan(plan, folder if store_dry_plan(folder, plan) else None, settings.gpu_price)
        return 0
    print_summary(summary, folder, settings.gpu_price)
    if failed := summary.tiles["failed"]:
        told = "they are holes in the map" if summary.published else "nothing is published; --allow-holes publishes the map with these holes marked"
        print(f"map_region: {failed} tiles failed (why: {folder.url}/coverage.parquet): {told}; --retry-failed looks at them again", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
