"""Pixels as the two towers want them: crops for CLIP, one square for SAM 2. Knows sizes and normalisation; nothing of the networks."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from geopixel.model.config import crop_grid

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    new_width = columns * crop_size
    new_height = max(1, int(new_width / (width / height)))
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((new_width, new_height), Image.Resampling.BILINEAR))
    canvas = np.full((rows * crop_size, new_width, 3), 255, np.uint8)
    canvas[:new_height] = resized
    return canvas


def normalise(image: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(height, width, 3) uint8 -> (3, height, width) float32."""
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def clip_crops(image: np.ndarray, hd_num: int, crop_size: int) -> tuple[Tensor, tuple[int, int]]:
    """Image (height, width, 3) uint8 -> crops (1 + rows * columns, 3, crop_size, crop_size) float32, global view first, and (rows, columns).

    The global view is the padded canvas squeezed to a square by plain bicubic interpolation, aspect not kept, as published.
    """
    canvas = normalise(fit_to_crops(image, hd_num, crop_size), CLIP_MEAN, CLIP_STD)
    rows, columns = canvas.shape[1] // crop_size, canvas.shape[2] // crop_size
    view = F.interpolate(canvas[None], (crop_size, crop_size), mode="bicubic", align_corners=False)
    crops = canvas.view(3, rows, crop_size, columns, crop_size).permute(1, 3, 0, 2, 4).flatten(0, 1)
    return torch.cat([view, crops]), (rows, columns)


def sam_pixels(image: np.ndarray, image_size: int) -> Tensor:
    """Image (height, width, 3) uint8 -> (3, image_size, image_size) float32; aspect not kept, antialiased (SAM2Transforms)."""
    scaled = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    resized = F.interpolate(scaled[None], (image_size, image_size), mode="bilinear", antialias=True)[0]
    return (resized - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
