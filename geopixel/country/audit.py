"""Recounts a country from what is stored: every cell of its outline has a record, every map adds up, every part of the whole is made from the maps that
are there. Writes nothing."""

from __future__ import annotations

from geopixel.country.assembly import check_part
from geopixel.country.cells import country_grid, cover
from geopixel.country.record import COUNTRY, Record, load_record, run_folder
from geopixel.pipeline import MapRequest, Progress
from geopixel.storage import Folder
from geopixel.verification import verify

WHOLE = ("mapped", "nodata")


def verify_country(folder: Folder, progress: Progress) -> tuple[list[Record], list[str]]:
    """The records of all cells, and a line for everything that is missing or does not add up. Raises FileNotFoundError where the folder holds no
    country."""
    asked = folder.get_json(COUNTRY)["request"]
    blocks = asked.pop("cell_blocks")
    request = MapRequest.from_json(asked)
    cells = cover(request.area, country_grid(request.area, request.crs, request.resolution), blocks)
    records = {cell.id: load_record(folder, cell.id) for cell in cells}
    holes = [f"cell {name} is {each.state}: {each.reason}".removesuffix(": ") for name, each in records.items() if each.state not in WHOLE]
    for count, cell in enumerate(cells, start=1):
        if run := records[cell.id].shown:
            holes += [f"cell {cell.id}: {hole}" for hole in _verify_map(run_folder(folder, cell.id, run))]
            holes += [wrong] if (wrong := check_part(cell, folder, records)) else []
        progress("cells", count, len(cells))
    return list(records.values()), holes


def _verify_map(run: Folder) -> list[str]:
    try:
        return verify(run).holes
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
