"""Pixels as the two towers want them: crops for CLIP, one square for SAM 2. Knows sizes and normalisation; nothing of the networks."""

from __future__ import annotations

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geopixel.model.config import crop_grid

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless the image is (height, width, 3) uint8 and not empty."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"an image is a (height, width, 3) uint8 array with at least one pixel, got {found}")


def fit_to_crops(image: np.ndarray, hd_num: int, crop_size: int) -> np.ndarray:
    """Image (height, width, 3) uint8 -> (rows * crop_size, columns * crop_size, 3) uint8: its long side stretched over the crops, white below
    (landscape) or to the right (portrait). PIL's bilinear filter with PIL's own antialiasing, as published (Image_transform)."""
    height, width = image.shape[:2]
    rows, columns = crop_grid(width, height, hd_num, crop_size)
    if width < height:
        return fit_to_crops(image.transpose(1, 0, 2), hd_num, crop_size).transpose(1, 0, 2)
    return _on_white(image, columns * crop_size, rows * crop_size, centred=False)


def fit_to_training_crops(image: np.ndarray, hd_num: int, crop_size: int) -> np.ndarray:
    """As fit_to_crops, by the rule that the published weights were trained with (ixc_utils.py, R560_HD18_Identity_transform): small images get
    fewer crops, large ones never more than hd_num, and the white is shared by both sides. Answers are asked for with fit_to_crops, as published.
    """
    height, width = image.shape[:2]
    if width < height:
        return fit_to_training_crops(image.transpose(1, 0, 2), hd_num, crop_size).transpose(1, 0, 2)
    ratio = width / height
    most = max(columns for columns in range(1, hd_num + 1) if columns * ceil(columns / ratio) <= hd_num)
    columns = min(most, ceil(1.5 * width / crop_size))
    rows = ceil(max(1, int(columns * crop_size / ratio)) / crop_size)
    return _on_white(image, columns * crop_size, rows * crop_size, centred=True)


def _on_white(image: np.ndarray, width: int, height: int, *, centred: bool) -> np.ndarray:
    """Image (any height, any width, 3) uint8 stretched to this width -> (height, width, 3), at the top of the white or in its middle."""
    new_height = max(1, int(width / (image.shape[1] / image.shape[0])))
    top = (height - new_height) // 2 if centred else 0
    resized = Image.fromarray(np.ascontiguousarray(image)).resize((width, new_height), Image.Resampling.BILINEAR)
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[top : top + new_height] = np.asarray(resized)
    return canvas


def normalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device = CPU) -> Tensor:
    """(height, width, 3) uint8 -> (3, height, width) float32. Bytes travel to the device; all that follows is computed there."""
    return _normalised(_scaled(image, device), mean, std)


def _scaled(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(image)).to(device).permute(2, 0, 1).float() / 255


def _normalised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - pixels.new_tensor(mean)[:, None, None]) / pixels.new_tensor(std)[:, None, None]


def clip_crops(image: np.ndarray, hd_num: int, crop_size: int, device: torch.device = CPU) -> tuple[Tensor, tuple[int, int]]:
    """Image (height, width, 3) uint8 -> crops (1 + rows * columns, 3, crop_size, crop_size) float32, global view first, and (rows, columns).

    The global view is the padded canvas squeezed to a square by plain bicubic interpolation, aspect not kept, as published.
    """
    return _cut(fit_to_crops(image, hd_num, crop_size), crop_size, device)


def training_crops(image: np.ndarray, hd_num: int, crop_size: int) -> tuple[Tensor, tuple[int, int]]:
    """As clip_crops, of the canvas that the published weights were trained with."""
    return _cut(fit_to_training_crops(image, hd_num, crop_size), crop_size, CPU)


def _cut(fitted: np.ndarray, crop_size: int, device: torch.device) -> tuple[Tensor, tuple[int, int]]:
    canvas = normalise(fitted, CLIP_MEAN, CLIP_STD, device)
    rows, columns = canvas.shape[1] // crop_size, canvas.shape[2] // crop_size
    view = F.interpolate(canvas[None], (crop_size, crop_size), mode="bicubic", align_corners=False)
    crops = canvas.view(3, rows, crop_size, columns, crop_size).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([view, crops]), (rows, columns)


def sam_pixels(image: np.ndarray, image_size: int, device: torch.device = CPU) -> Tensor:
    """Image (height, width, 3) uint8 -> (3, image_size, image_size) float32; aspect not kept, antialiased (SAM2Transforms)."""
    resized = F.interpolate(_scaled(image, device)[None], (image_size, image_size), mode="bilinear", antialias=True)[0]
    return _normalised(resized, IMAGENET_MEAN, IMAGENET_STD)
