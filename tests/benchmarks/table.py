"""What the benchmarks print: markdown tables, and which figures miss their target. Knows nothing of models and measures nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and what it must come to."""

    name: str
    value: float
    target: float
    unit: str = "x"
    at_most: bool = False
    """The target is a ceiling; else it is a floor."""

    @property
    def met(self) -> bool:
        """False for a number that could not be measured (nan) too."""
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def measured(self) -> str:
        return f"{self.value:.3g}{self.unit}"

    @property
    def wanted(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.target:g}{self.unit}"

    @property
    def verdict(self) -> str:
        return "yes" if self.met else "no"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as what stands in them. Raises ValueError for a row with another number of cells than the header."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"every row must have {len(header)} cells like {list(header)}, got {list(row)}")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines)


def exit_code(figures: Sequence[Figure]) -> int:
    """1 and a line on stderr for every figure that misses its target; 0 where there is none."""
    missed = [figure for figure in figures if not figure.met]
    for figure in missed:
        print(f"missed: {figure.name}: {figure.measured}, target {figure.wanted}", file=sys.stderr)
    return 1 if missed else 0
