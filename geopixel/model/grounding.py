"""SAM 2 with text states as prompts: image features once, masks for any number of [SEG] states. The network is transformers' own Sam2."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Sam2Config, Sam2Model
from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2MaskDecoderConfig, Sam2PromptEncoderConfig, Sam2VisionConfig

from geopixel.model.config import GroundingConfig
from geopixel.model.encoder import GIVEN, PYRAMID, PyramidConfig


def build_hiera(config: GroundingConfig) -> tuple[Sam2HieraDetConfig, list[int]]:
    """SAM 2's own encoder, and the channels of its four maps."""
    sizes = [config.embed_size * 2**i for i in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=config.embed_size,
        num_attention_heads=config.heads,
        image_size=[config.image_size] * 2,
        blocks_per_stage=list(config.blocks),
        embed_dim_per_stage=sizes,
        num_attention_heads_per_stage=[config.heads * 2**i for i in range(4)],
        window_size_per_stage=list(config.windows),
        window_positional_embedding_background_size=[config.background_window] * 2,
        global_attention_blocks=list(config.global_blocks),
    )
    return hiera, sizes


def build_sam2(config: GroundingConfig) -> Sam2Model:
    encoder, channels = build_hiera(config) if config.encoder == "hiera" else (PyramidConfig(), [PYRAMID] * len(GIVEN))
    vision = Sam2VisionConfig(
        backbone_config=encoder,
        backbone_channel_list=channels[::-1],
        backbone_feature_sizes=[[config.image_size // stride] * 2 for stride in (4, 8, 16)],
        fpn_hidden_size=config.hidden_size,
    )
    decoder = Sam2MaskDecoderConfig(
        hidden_size=config.hidden_size,
        mlp_dim=config.mlp_size,
        dynamic_multimask_via_stability=config.multimask_fallback,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=config.hidden_size, image_size=config.image_size)
    model = Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder))
    # Text states are the only prompts: what embeds points, boxes and masks is never used.
    for unused in ("mask_embed", "point_embed", "not_a_point_embed", "shared_embedding"):
        delattr(model.prompt_encoder, unused)
    return model


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the mask decoder needs of a batch of images, S = image_size / 4."""

    embedding: Tensor
    """(images, hidden, S / 4, S / 4)"""
    fine: tuple[Tensor, Tensor]
    """(images, hidden / 8, S, S) and (images, hidden / 4, S / 2, S / 2)"""

    def take(self, index: Tensor) -> ImageFeatures:
        """The features of image index[i] at place i."""
        return ImageFeatures(self.embedding[index], (self.fine[0][index], self.fine[1][index]))


@dataclass(frozen=True, slots=True)
class Masks:
    logits: Tensor
    """(masks, S, S), positive inside the object."""
    scores: Tensor
    """(masks,) IoU that the decoder expects of its mask."""
    object_scores: Tensor
    """(masks,) logit of the object being there at all."""


class Grounding(nn.Module):
    def __init__(self, config: GroundingConfig) -> None:
        super().__init__()
        self.sam2 = build_sam2(config)

    def encode(self, pixels: Tensor) -> ImageFeatures:
        """Normalised pixels (images, 3, image_size, image_size) -> features."""
        # Sam2Model.get_image_embeddings does the same under no_grad; training needs the gradient.
        maps = list(self.sam2.get_image_features(pixels, return_dict=True).fpn_hidden_states)
        maps[-1] = maps[-1] + self.sam2.no_memory_embedding
        sizes = self.sam2.backbone_feature_sizes
        fine0, fine1, embedding = (m.permute(1, 2, 0).reshape(len(pixels), -1, *size) for m, size in zip(maps, sizes, strict=True))
        return ImageFeatures(embedding, (fine0, fine1))

    def decode(self, features: ImageFeatures, prompts: Tensor) -> Masks:
        """One mask for every prompt (images, prompts, hidden), flattened image by image."""
        images, count, _ = prompts.shape
        dense = self.sam2.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand_as(features.embedding)
        place = self.sam2.get_image_wide_positional_embeddings().to(prompts.dtype).repeat(images, 1, 1, 1)
        logits, scores, _, object_scores = self.sam2.mask_decoder(
            image_embeddings=features.embedding,
            image_positional_embeddings=place,
            sparse_prompt_embeddings=prompts[:, :, None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
            high_resolution_features=list(features.fine),
        )
        return Masks(logits.flatten(0, 2), scores.flatten(), object_scores.flatten())


def upsample(logits: Tensor, height: int, width: int) -> Tensor:
    """Mask logits (masks, S, S) -> (masks, height, width) float32, bilinear with half-pixel centres (SAM 2's postprocess_masks)."""
    return torch.nn.functional.interpolate(logits[:, None].float(), (height, width), mode="bilinear", align_corners=False)[:, 0]
