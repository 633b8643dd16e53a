"""Recounts a finished run, or a country, from its storage and exits 1 on any hole."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from geopixel.console import ProgressDisplay
from geopixel.country import COUNTRY, verify_country
from geopixel.storage import Folder
from geopixel.verification import verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a run or a country: a path or a URL")
    folder = Folder.at(parser.parse_args().run)
    if folder.exists(COUNTRY):
        with ProgressDisplay() as progress:
            records, holes = verify_country(folder, progress)
        counts = Counter(record.state for record in records)
        print(f"cells  {len(records)} = " + " + ".join(f"{count} {state}" for state, count in sorted(counts.items())))
        return conclude(holes)
    try:
        verdict = verify(folder)
    except FileNotFoundError:
        print(f"verify: error: {folder.url} holds no run", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    print(f"tiles  {sum(verdict.tiles.values())} = " + " + ".join(f"{count} {state}" for state, count in verdict.tiles.items()))
    print("pixels " + ", ".join(f"{count} {state}" for state, count in sorted(verdict.pixels.items())))
    return conclude(verdict.holes)


def conclude(holes: Sequence[str]) -> int:
    for hole in holes:
        print(f"hole: {hole}")
    print("verified: no holes" if not holes else f"{len(holes)} things do not add up")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
