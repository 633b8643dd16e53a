"""Recounts a country from what is stored: every cell of its outline has a record, every map adds up, every part of the whole is made from the maps that
are there. Writes nothing, unless it is asked to remove what is broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from geopixel.country.assembly import check_part, part_path
from geopixel.country.cells import country_grid, cover
from geopixel.country.record import COUNTRY, load_record, run_folder, store_record
from geopixel.pipeline import MapRequest, Progress
from geopixel.storage import Folder
from geopixel.verification import mend, verify

WHOLE = ("mapped", "nodata")


@dataclass(frozen=True, slots=True)
class CountryVerdict:
    cells: dict[str, int]
    """By state."""
    holes: list[str]
    """One line for everything that is missing or does not add up; none: the country is whole."""
    broken: int
    """Files that are damaged."""


def verify_country(folder: Folder, progress: Progress, mending: bool = False) -> CountryVerdict:
    """Recounts cells, and in each of them tiles, pixels and features. mending: removes what is broken, so that the same job makes it anew. Raises
    FileNotFoundError where the folder holds no country."""
    asked = folder.get_json(COUNTRY)["request"]
    blocks = asked.pop("cell_blocks")
    request = MapRequest.from_json(asked)
    cells = cover(request.area, country_grid(request.area, request.crs, request.resolution), blocks)
    records = {cell.id: load_record(folder, cell.id) for cell in cells}
    holes = [f"cell {name} is {each.state}: {each.reason}".removesuffix(": ") for name, each in records.items() if each.state not in WHOLE]
    broken = 0
    for count, cell in enumerate(cells, start=1):
        record = records[cell.id]
        if record.shown:
            found, files = _verify_map(run_folder(folder, cell.id, record.shown), mending)
            holes += [f"cell {cell.id}: {hole}" for hole in found]
            if files and mending:
                store_record(folder, replace(record, state="begun"))
            wrong = check_part(cell, folder, records)
            if wrong and mending:
                folder.delete(part_path(cell.id))
            holes += [wrong] if wrong else []
            broken += files + bool(wrong)
        progress("cells", count, len(cells))
    return CountryVerdict(dict(sorted(Counter(record.state for record in records.values()).items())), holes, broken)


def _verify_map(run: Folder, mending: bool) -> tuple[list[str], int]:
    """Holes of a cell's run, and how many of its files are damaged."""
    try:
        verdict = verify(run)
    except (FileNotFoundError, ValueError) as error:
        return [str(error)], 0
    if mending:
        mend(run, verdict)
    return verdict.holes, len(verdict.broken)
