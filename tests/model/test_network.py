"""Law: what training needs. From the losses a gradient reaches every weight that the answers depend on."""

from __future__ import annotations

import re

import torch

from geopixel.model.losses import answer_loss, mask_loss

from .tiny import CONFIG, network

NEEDLESS = re.compile(
    r"iou_prediction_head|pred_obj_score_head"  # scores, which no loss looks at
    r"|output_hypernetworks_mlps\.[123]"  # masks 1-3 of the fallback
    rf"|layers\.{CONFIG.language.layers - 1}\.(attention\.wo|feed_forward\.w.)\.plora"  # states of image tokens, after all attention
)


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    made = network().train().requires_grad_(True)
    size = made.config.vision.crop_size
    tokens = made.vision(torch.randn(3, 3, size, size), [(1, 2)])[0]
    ids = torch.arange(20)
    x = torch.cat([tokens, made.language.tok_embeddings(ids)])[None]
    image_mask = torch.arange(x.shape[1])[None] < len(tokens)
    hidden = made.language(x, image_mask=image_mask)[0, len(tokens) :]
    pixels = torch.randn(1, 3, CONFIG.grounding.image_size, CONFIG.grounding.image_size)
    masks = made.grounding.decode(made.grounding.encode(pixels), made.mask_prompts(hidden[-2:])[None])
    target = torch.rand_like(masks.logits) > 0.5
    (mask_loss(masks.logits, target) + answer_loss(made.language.output(hidden), ids)).backward()
    without = [name for name, p in made.named_parameters() if (p.grad is None or not p.grad.any()) and not NEEDLESS.search(name)]
    assert without == []


def test_mask_prompts_are_made_one_by_one() -> None:
    made = network()
    states = torch.randn(2, 3, made.config.language.hidden_size)
    prompts = made.mask_prompts(states)
    assert prompts.shape == (2, 3, made.config.grounding.hidden_size)
    first, _, last = made.text_hidden_fcs
    expected = (states @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    torch.testing.assert_close(prompts, expected, atol=1e-4, rtol=1e-4)
