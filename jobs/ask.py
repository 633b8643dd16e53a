"""Asks one image: prints the answer with its phrases coloured, writes the overlay as <image>.<n>.png and, where the image has a CRS, the masks
as <image>.<n>.parquet (GeoParquet). n counts the questions; older files stay. Without a prompt it is a conversation that remembers what was
said and ends on an empty line. Bands that are not 8-bit are shown between their 2nd and 98th percentile."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from geopixel.errors import GeoPixelError


def main() -> int:
    arguments = parser().parse_args()
    try:
        return ask(arguments)
    except (GeoPixelError, ValueError, OSError) as error:
        print(f"ask: error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", metavar="IMAGE", type=Path, help="PNG, JPEG, GeoTIFF or what else GDAL reads")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="what to ask (default: ask for questions, one a line)")
    model = "bundled small model, checkpoint folder or hub id (default: MBZUAI/GeoPixel-7B where CUDA is there, else nano)"
    parser.add_argument("--model", metavar="nano|PATH|HUB_ID", help=model)
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path(), help="where the files go (default: where the command runs)")
    parser.add_argument("--threshold", metavar="P", type=float, default=0.5, help="probability from which on a pixel is in a mask (default: %(default)s)")
    parser.add_argument("--max-new-tokens", metavar="N", type=int, default=300, help="longest answer, in tokens (default: %(default)s)")
    return parser


def ask(arguments: argparse.Namespace) -> int:
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is not a folder")
    if not 0 < arguments.threshold < 1:
        raise ValueError(f"--threshold must be between 0 and 1, got {arguments.threshold}")
    from geopixel.conversation import Conversation, coloured, default_model, read_picture, remarks, store

    picture = read_picture(arguments.image)
    from geopixel.model import GeoPixel  # loads torch: a picture that cannot be read is refused before

    model = GeoPixel.from_pretrained(arguments.model or default_model())
    conversation = Conversation(model, picture, threshold=arguments.threshold, max_new_tokens=arguments.max_new_tokens)
    console = Console(soft_wrap=True)
    number = 0
    for question in questions() if arguments.prompt is None else [arguments.prompt]:
        try:
            reply = conversation.ask(question)
            console.print(coloured(reply))
            number, paths = store(picture, reply, arguments.out, arguments.image.stem, number + 1)
        except ValueError as error:
            if arguments.prompt is not None:
                raise
            print(f"ask: {error}", file=sys.stderr)  # another question may do
            continue
        for line in remarks(picture, reply, paths, arguments.threshold):
            print(line)
    return 0


def questions() -> Iterator[str]:
    """Lines typed, up to an empty one, the end of input or Ctrl-C."""
    try:
        while line := input("> " if sys.stdin.isatty() else "").strip():
            yield line
    except (EOFError, KeyboardInterrupt):
        print()


if __name__ == "__main__":
    sys.exit(main())
