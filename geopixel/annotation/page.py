"""samples.html: a page to look at samples, with everything in it. Knows texts and pictures; asks no network."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

import numpy as np
from jinja2 import Environment
from PIL import Image

from geopixel.annotation.descriptions import SEG, Sample
from geopixel.annotation.marks import PALETTE

PHRASE = re.compile(r"<p>(.*?)</p>\s*\[SEG\]", re.DOTALL)


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A chip on the page."""

    id: str
    split: str
    marked: np.ndarray
    """(H, W, 3) uint8: the masks of its description, numbered."""
    samples: Sequence[Sample]


def render_page(chips: Sequence[Shown], total: int) -> str:
    """HTML of some chips with all their texts; total: samples that there are. Texts are escaped, and the page runs no script."""
    source = (files(__package__) / "samples.html.jinja").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    shown = [
        {"id": chip.id, "split": chip.split, "picture": _data_url(chip.marked), "samples": [(each, list(coloured(each.answer))) for each in chip.samples]}
        for chip in chips
    ]
    return template.render(chips=shown, total=total)


def coloured(answer: str) -> Iterator[tuple[str, int, str]]:
    """Pieces of an answer: text, number and colour of its mark; 0 and "" for what is no phrase."""
    end = 0
    for number, match in enumerate(PHRASE.finditer(answer), start=1):
        yield answer[end : match.start()], 0, ""
        yield match[1].strip(), number, PALETTE[(number - 1) % len(PALETTE)]
        end = match.end()
    yield answer[end:].replace(SEG, ""), 0, ""


def _data_url(picture: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
