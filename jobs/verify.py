"""Recounts a finished run from its storage and exits 1 on any hole. --mend removes what is broken: the same job, submitted again, makes it anew."""

from __future__ import annotations

import argparse
import sys

from geopixel.storage import Folder
from geopixel.verification import mend, verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder: a path or a URL")
    parser.add_argument("--mend", action="store_true", help="remove what is broken, so that the same job, submitted again, makes it anew")
    arguments = parser.parse_args()
    folder = Folder.at(arguments.run)
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
    for hole in verdict.holes:
        print(f"hole: {hole}")
    print("verified: no holes" if not verdict.holes else f"{len(verdict.holes)} things do not add up")
    if verdict.broken and arguments.mend:
        mend(folder, verdict)
        print(f"removed {len(verdict.broken)} files: submit the same job again to make them anew")
    elif verdict.broken:
        print("--mend removes what is broken; the same job, submitted again, then makes it anew")
    return 1 if verdict.holes else 0


if __name__ == "__main__":
    sys.exit(main())
