"""A country in, a folder with a run for each of its cells and one map of them all out: see --help."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

from geopixel.aoi import read_area
from geopixel.config import DEMO, NO_CATALOG, CountrySettings, load
from geopixel.errors import GeoPixelError


def main() -> int:
    settings = load(CountrySettings)
    try:
        return map_country(settings)
    except (GeoPixelError, ValueError) as error:
        print(f"map_country: error: {error}", file=sys.stderr)
        return 2


def map_country(settings: CountrySettings) -> int:
    """0: all cells are mapped, or have no imagery; 1: some are not, or have holes."""
    catalog, aoi = settings.catalog, settings.aoi
    if catalog == DEMO:
        from geopixel.demo import demo_catalog

        path = demo_catalog()
        catalog, aoi = str(path), aoi or str(path.with_name("aoi.geojson"))
    assert aoi is not None, "settings ask for an area unless the demo brings its own"
    area = read_area(aoi, warn=lambda line: print(f"map_country: {line}", file=sys.stderr))

    from geopixel import country, distributed
    from geopixel.console import ProgressDisplay, print_country, print_country_plan
    from geopixel.model.config import default_model, read_model_config
    from geopixel.pipeline import Limits, MapRequest
    from geopixel.storage import Folder

    actors = {name: getattr(settings, name) for name in ("gpus_per_actor", "min_actors", "max_actors", "max_attempts")}
    runner, folder = distributed.RayRunner(**actors), Folder(settings.out)
    model = settings.model or country.model_of(folder) or default_model("cpu" if settings.dry_run else runner.device)
    config = read_model_config(model)
    names = {field.name for field in fields(MapRequest)} & CountrySettings.model_fields.keys() - {"prompt", "catalog", "model", "profile"}
    profile = None if settings.profile is None else Path(settings.profile).expanduser().read_text()
    request = MapRequest(area, settings.prompt, catalog, model, profile=profile, **{name: getattr(settings, name) for name in names})
    limits = Limits(settings.allow_hosts, settings.max_items, settings.max_vertices, settings.max_tiles)
    if catalog != NO_CATALOG:
        request = country.settle_grid(request, settings.cell_blocks, folder, limits)
    if settings.dry_run:
        plan = country.plan_country(request, config, settings.cell_blocks)
        print_country_plan(plan, folder if country.store_country_plan(folder, plan) else None, settings.gpu_price)
        return 0
    asked = {"again": settings.since == "last", "retry_failed": settings.retry_failed, "limits": limits}
    with ProgressDisplay() as progress:
        summary = country.map_country(request, folder, config, runner, progress, blocks=settings.cell_blocks, **asked)
    print_country(summary, folder, settings.gpu_price)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
