"""Recounts a finished run from its storage and exits 1 on any hole."""

from __future__ import annotations

import argparse
import sys

from geopixel.storage import Folder
from geopixel.verification import verify


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder: a path or a URL")
    folder = Folder.at(parser.parse_args().run)
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
    return 1 if verdict.holes else 0


if __name__ == "__main__":
    sys.exit(main())
