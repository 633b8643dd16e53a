"""Oracle: Pillow. Laws: crops put together are the picture; portrait is landscape transposed; below the picture there is white."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geopixel.model import processor
from geopixel.model.config import crop_grid

from .tiny import image

sizes = st.integers(1, 300)


@given(sizes, sizes, st.integers(1, 9))
def test_the_picture_fills_the_crops_from_the_top(height: int, width: int, hd_num: int) -> None:
    picture, size = image(height, width), 28
    fitted = processor.fit_to_crops(picture, hd_num, size)
    rows, columns = crop_grid(width, height, hd_num, size)
    assert fitted.shape == (rows * size, columns * size, 3)
    assert fitted.dtype == np.uint8
    if width < height:
        picture, fitted = picture.transpose(1, 0, 2), fitted.transpose(1, 0, 2)
    filled = max(1, int(fitted.shape[1] / (max(height, width) / min(height, width))))
    assert len(fitted) - size < filled <= len(fitted)
    stretched = Image.fromarray(np.ascontiguousarray(picture)).resize((fitted.shape[1], filled), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(fitted[:filled], stretched)
    assert (fitted[filled:] == 255).all()


@given(st.integers(1, 100), st.integers(1, 100))
def test_portrait_is_landscape_transposed(height: int, width: int) -> None:
    if height == width:
        return
    picture = image(height, width)
    np.testing.assert_array_equal(processor.fit_to_crops(picture.transpose(1, 0, 2), 6, 28), processor.fit_to_crops(picture, 6, 28).transpose(1, 0, 2))


@settings(max_examples=30)
@given(sizes, sizes)
def test_crops_are_the_picture_row_by_row(height: int, width: int) -> None:
    picture, size = image(height, width), 28
    crops, (rows, columns) = processor.clip_crops(picture, 6, size)
    assert crops.shape == (1 + rows * columns, 3, size, size)
    assert crops.dtype == torch.float32
    canvas = processor.fit_to_crops(picture, 6, size)
    mean, std = (np.array(values, np.float32) for values in (processor.CLIP_MEAN, processor.CLIP_STD))
    normalised = ((canvas / np.float32(255) - mean) / std).transpose(2, 0, 1)
    for r in range(rows):
        for c in range(columns):
            part = normalised[:, r * size : (r + 1) * size, c * size : (c + 1) * size]
            np.testing.assert_allclose(crops[1 + r * columns + c], part, atol=1e-6)
    view = torch.nn.functional.interpolate(torch.from_numpy(normalised)[None], (size, size), mode="bicubic")[0]
    np.testing.assert_allclose(crops[0], view, atol=1e-5)


@settings(max_examples=30)
@given(sizes, sizes, st.sampled_from([16, 64, 200]))
def test_sam_pixels_are_antialiased(height: int, width: int, size: int) -> None:
    picture = image(height, width)
    pixels = processor.sam_pixels(picture, size)
    assert pixels.shape == (3, size, size)
    for band, mean, std, ours in zip(picture.transpose(2, 0, 1), processor.IMAGENET_MEAN, processor.IMAGENET_STD, pixels, strict=True):
        stretched = Image.fromarray(band.astype(np.float32) / 255).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(ours, (np.asarray(stretched) - mean) / std, atol=1e-4)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \(4, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint16), r"uint16 \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \(4, 4, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"uint8 \(3, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \(0, 4, 3\)"),
        ([[0, 0, 0]], "list"),
        ("scene.png", "str"),
    ],
)
def test_what_is_no_image_is_refused(bad: Any, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        processor.check_image(bad)
    processor.check_image(image(1, 1))
