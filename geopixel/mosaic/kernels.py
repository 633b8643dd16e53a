"""The compiled loops of the mosaic: a tile's logits stretched, made probabilities and added to a block; probabilities made levels; a plane
halved. Knows arrays of one plane; nothing of tiles, prompts or files.

They are plain IEEE arithmetic in a fixed order, without the freedoms of fastmath: every processor gives the same bits, so a block that
another machine makes again has equal bytes. Loops over one row at a time are what the compiler turns into vector instructions.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from geopixel import compiling

compiled = partial(compiling.compiled, error_model="numpy")

_LOG2_E = np.float32(math.log2(math.e))
_SERIES = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(8))
"""Taylor series of 2 ** f: within 1e-7 for f in -0.5..0.5."""
_BIAS, _MANTISSA = np.float32(127), np.float32(1 << 23)
"""A float32 whose bits are (n + 127) << 23 is 2 ** n (IEEE 754)."""
_ONE, _NEXT = np.float32(1), np.uint32(1)


@compiled
def _lerp(above: np.ndarray, below: np.ndarray, fraction: np.float32, scale: np.float32, line: np.ndarray) -> None:
    for i in range(len(above)):
        upper = np.float32(above[i])
        line[i] = (upper + (np.float32(below[i]) - upper) * fraction) * scale


@compiled
def _stretch(line: np.ndarray, low: np.ndarray, fraction: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        left = line[low[i]]
        out[i] = left + (line[low[i] + _NEXT] - left) * fraction[i]


@compiled
def _add_probability(logits: np.ndarray, row_weight: np.float32, weights: np.ndarray, out: np.ndarray) -> None:
    """out += weight * 1 / (1 + exp(-logit)), within 1e-7 of a probability."""
    for i in range(len(logits)):
        exponent = logits[i] * _LOG2_E
        whole = np.rint(exponent)
        rest = whole - exponent
        power = _SERIES[7]
        for k in (6, 5, 4, 3, 2, 1, 0):
            power = power * rest + _SERIES[k]
        scale = np.int32((_BIAS - whole) * _MANTISSA).view(np.float32)
        out[i] += row_weight * weights[i] / (_ONE + power * scale)


@compiled
def add_weights(total: np.ndarray, place: tuple[int, int], rows: np.ndarray, columns: np.ndarray) -> None:
    """total, (height, width) float32, += the product of the weights along both axes, in place; place: row and column of the first."""
    for row in range(len(rows)):
        line = total[place[0] + row, place[1] : place[1] + len(columns)]
        for i in range(len(line)):
            line[i] += rows[row] * columns[i]


@compiled
def add_tile(
    total: np.ndarray,
    place: tuple[int, int],
    logits: np.ndarray,
    scale: np.float32,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    columns: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Adds a tile's weighted probabilities to total, (height, width) float32, in place; place: row and column of the tile's first pixel in it.

    logits: (h, w) int8, scale of one unit. rows, columns: for each pixel of the tile along the axis, the sample before it (uint32), how far it
    is to the next one (float32; the last sample goes on beyond it) and its weight (float32).
    """
    height, width = logits.shape
    row_low, row_fraction, row_weight = rows
    column_low, column_fraction, column_weight = columns
    line = np.empty(width + 1, np.float32)
    stretched = np.empty(len(column_weight), np.float32)
    for row in range(len(row_weight)):
        low = row_low[row]
        _lerp(logits[low], logits[min(low + 1, height - 1)], row_fraction[row], scale, line[:width])
        line[width] = line[width - 1]
        _stretch(line, column_low, column_fraction, stretched)
        _add_probability(stretched, row_weight[row], column_weight, total[place[0] + row, place[1] : place[1] + len(stretched)])


@compiled
def quantise(
    total: np.ndarray,
    weights: np.ndarray,
    answered: np.ndarray,
    threshold: np.float32,
    levels: np.float32,
    none: np.uint8,
    mask: np.ndarray,
    confidence: np.ndarray,
) -> None:
    """From sums of weighted probabilities and of weights, both (height, width) float32: into mask whether a probability reaches the threshold,
    into confidence the nearest of the levels; none where not answered."""
    for row in range(len(total)):
        sums, divisors, known, present, level = total[row], weights[row], answered[row], mask[row], confidence[row]
        for column in range(len(sums)):
            probability = sums[column] / divisors[column]
            present[column] = np.uint8(probability >= threshold) if known[column] else none
            level[column] = np.uint8(np.rint(probability * levels)) if known[column] else none


@compiled
def halve(plane: np.ndarray, none: int) -> np.ndarray:
    """(h, w) uint8 -> (h / 2, w / 2): the mean of those of four pixels that are not none, half rounded up; none where all are.
    For a mask that is the majority, and a tie is present."""
    height, width = plane.shape
    out = np.empty((height // 2, width // 2), np.uint8)
    for row in range(height // 2):
        above, below, line = plane[2 * row], plane[2 * row + 1], out[row]
        for column in range(width // 2):
            count, total = np.int32(0), np.int32(0)
            for value in (above[2 * column], above[2 * column + 1], below[2 * column], below[2 * column + 1]):
                if value != none:
                    count += np.int32(1)
                    total += np.int32(value)
            line[column] = none if count == 0 else (2 * total + count) // (2 * count)
    return out
