"""Recounts a finished run, or a country, from its storage and exits 1 on any hole. --mend removes what is broken: the same job, submitted again, makes it
anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from geopixel.console import ProgressDisplay
from geopixel.country import COUNTRY, verify_country
from geopixel.storage import Folder
from geopixel.verification import mend, verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run or a country: a path or a URL")
    parser.add_argument("--mend", action="store_true", help="remove what is broken, so that the same job, submitted again, makes it anew")
    arguments = parser.parse_args()
    folder = Folder.at(arguments.run)
    try:
        return verify_cells(folder, arguments.mend) if folder.exists(COUNTRY) else verify_run(folder, arguments.mend)
    except FileNotFoundError:
        print(f"verify: error: {folder.url} holds no run", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1


def verify_run(folder: Folder, mending: bool) -> int:
    verdict = verify(folder)
    print(f"tiles  {sum(verdict.tiles.values())} = " + " + ".join(f"{count} {state}" for state, count in verdict.tiles.items()))
    print("pixels " + ", ".join(f"{count} {state}" for state, count in sorted(verdict.pixels.items())))
    if mending:
        mend(folder, verdict)
    return conclude(verdict.holes, len(verdict.broken), mending)


def verify_cells(folder: Folder, mending: bool) -> int:
    with ProgressDisplay() as progress:
        verdict = verify_country(folder, progress, mending)
    print(f"cells  {sum(verdict.cells.values())} = " + " + ".join(f"{count} {state}" for state, count in verdict.cells.items()))
    return conclude(verdict.holes, verdict.broken, mending)


def conclude(holes: Sequence[str], broken: int, mended: bool) -> int:
    """broken: files that are damaged."""
    for hole in holes:
        print(f"hole: {hole}")
    print("verified: no holes" if not holes else f"{len(holes)} things do not add up")
    if broken and mended:
        print(f"removed {broken} files: submit the same job again to make them anew")
    elif broken:
        print("--mend removes what is broken; the same job, submitted again, then makes it anew")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
