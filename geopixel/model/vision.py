"""The CLIP tower and the projector: crops of an image in, tokens for the language model out. How an image is cut into crops is the processor's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from geopixel.model.config import GeoPixelConfig, VisionConfig


def build_tower(config: VisionConfig) -> CLIPVisionModel:
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            image_size=config.crop_size,
            patch_size=config.patch_size,
            layer_norm_eps=config.layer_norm_eps,
            hidden_act="quick_gelu",
        )
    )
    del tower.post_layernorm
    return tower


class VisionTokens(nn.Module):
    """Crops -> tower -> 2 x 2 merge -> row ends -> projector.

    The sequence is the global view, one separator, the local view; each row of tokens ends in a newline token. The published model
    ends the rows of BOTH views with `row_end` (plora_sub_GN) and uses `separator` (plora_glb_GN) once, between them.
    """

    def __init__(self, config: GeoPixelConfig) -> None:
        super().__init__()
        self.side = config.vision.tokens_per_side
        merged = 4 * config.vision.hidden_size
        self.tower = build_tower(config.vision)
        self.row_end = nn.Parameter(torch.zeros(merged))
        self.separator = nn.Parameter(torch.zeros(merged))
        hidden = config.language.hidden_size
        self.projector = nn.Sequential(nn.Linear(merged, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def features(self, crops: Tensor) -> Tensor:
        """(crops, 3, size, size) normalised pixels -> (crops, side, side, 4 * hidden), channels ordered (dy, dx, channel).

        The last encoder layer without post_layernorm and without the class token, as the published model takes it.
        """
        # A GPU wants all crops at once; on a CPU what is between the layers of one crop fits into the cache, and the sums are the same.
        together = len(crops) if crops.is_cuda else 1
        x = torch.cat([self._last_layer(part) for part in crops.split(together)])
        x = x.view(len(crops), self.side, 2, self.side, 2, -1)
        return x.permute(0, 1, 3, 2, 4, 5).flatten(3)

    def _last_layer(self, crops: Tensor) -> Tensor:
        """(crops, 4 * side ** 2, hidden)"""
        x = self.tower.pre_layrnorm(self.tower.embeddings(crops))
        return self.tower.encoder(inputs_embeds=x).last_hidden_state[:, 1:]

    def arrange(self, features: Tensor, rows: int, columns: int) -> Tensor:
        """Features of one image, global view first, then rows x columns crops row by row -> (tokens, 4 * hidden)."""
        side = self.side
        local = features[1:].view(rows, columns, side, side, -1).permute(0, 2, 1, 3, 4).reshape(rows * side, columns * side, -1)
        views = [torch.cat([view, self.row_end.expand(len(view), 1, -1)], dim=1).flatten(0, 1) for view in (features[0], local)]
        return torch.cat([views[0], self.separator[None], views[1]])

    def forward(self, crops: Tensor, grids: list[tuple[int, int]]) -> list[Tensor]:
        """Crops of all images in one batch (sum of 1 + rows * columns, 3, size, size) -> per image (tokens, hidden)."""
        counts = [1 + rows * columns for rows, columns in grids]
        parts = self.features(crops).split(counts)
        return [self.projector(self.arrange(part, *grid)) for part, grid in zip(parts, grids, strict=True)]
