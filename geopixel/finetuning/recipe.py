"""The published recipe (mbzuai-oryx/GeoPixel, train.py, train.sh, finetune.sh): which weights are trained, how far a step goes, in what order
samples come. Knows a network and numbers; nothing of files, processes or Ray."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import ceil, cos, isfinite, pi

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from geopixel.labels import optional
from geopixel.model.network import GeoPixelNetwork

PROJECTIONS = ("wqkv", "wo", "w1", "w2", "w3")
"""Of every layer of the language model, attention and feed forward: what LoRA adapts."""

TRAINED = (
    "language.tok_embeddings.",
    "language.output.",
    "text_hidden_fcs.",
    "grounding.sam2.mask_decoder.",
    "vision.projector.",
    "vision.row_end",
    "vision.separator",
)
"""What is trained besides LoRA; all else stays as it is. The published code trains the two newline tokens by accident (peft takes the lora_ in
plora_ for its own): its weights have it, and so has this. Of the mask decoder, what no loss reaches (scores, the fallback's masks, conv_s0,
conv_s1) stays too."""

TOUCHED = ("text_hidden_fcs", "grounding.sam2.mask_decoder")
"""What a batch without masks leaves untouched."""

MAX_NORM = 1.0
"""Of the gradient: what transformers' Trainer, which the published code runs on, clips to."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Defaults as published for fine-tuning the released model (finetune.sh)."""

    epochs: int = 3
    batch: int = 80
    """Samples of a step, over all workers."""
    micro_batch: int = 2
    """Samples that a worker computes at once: memory. Part of the recipe because answers and masks are averaged over these, as published."""
    learning_rate: float = 3e-4
    warmup: int = 100
    """Steps, but never more than a tenth of them all."""
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.batch % self.micro_batch:
            raise ValueError(f"a batch is whole micro-batches of {self.micro_batch}, got {self.batch}")

    @property
    def parts(self) -> int:
        """Micro-batches of a step."""
        return self.batch // self.micro_batch

    def steps(self, samples: int) -> int:
        """Of the whole training on so many samples."""
        return ceil(self.epochs * samples / self.batch)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0: linear warm-up, then half a cosine down to 0."""
        warmup = min(self.warmup, steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))

    def drawn(self, step: int, samples: int) -> list[list[int]]:
        """The micro-batches of a step, as indexes of samples: every epoch in an order of its own, the same for any number of workers."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        orders = {epoch: np.random.default_rng((self.seed, epoch)).permutation(samples) for epoch in np.unique(places // samples).tolist()}
        indexes = [int(orders[place // samples][place % samples]) for place in places.tolist()]
        return [indexes[at : at + self.micro_batch] for at in range(0, self.batch, self.micro_batch)]


def apply_recipe(network: GeoPixelNetwork, recipe: Recipe) -> None:
    """Puts LoRA on the projections (peft), lets exactly the published weights be trained, and has the language model's layers computed anew in the
    backward pass (gradient checkpointing). Raises ValueError where peft is not installed."""
    peft = optional("peft", "finetune")
    config = peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout, bias="none", target_modules=list(PROJECTIONS))
    torch.manual_seed(recipe.seed)  # LoRA's A begins as noise, B at zero
    peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(TRAINED))
    for layer in network.language.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def touch(network: GeoPixelNetwork) -> Tensor:
    """Zero, through every trained weight that a batch may leave untouched: workers that average gradients must all have them."""
    weights = [weight for part in TOUCHED for weight in network.get_submodule(part).parameters() if weight.requires_grad]
    return torch.stack([weight.flatten()[0].float() for weight in weights]).sum() * 0.0


class Steps:
    """AdamW (betas 0.9 and 0.95, no decay) on float32 copies of the trained weights, as the published training keeps them beside bfloat16. Weights
    that are float32 are their own copy. Weights may be sharded over workers (DTensor): what is saved and loaded is always whole."""

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.weights = {name: parameter.detach().float() for name, parameter in parameters.items()}
        self.adam = torch.optim.AdamW(list(self.weights.values()), betas=(0.9, 0.95), weight_decay=0.0)
        self.adam_state()

    def take(self, rate: float) -> float:
        """One step along the gradients, which are used up; returns their norm before it is clipped. Raises ValueError, and takes no step, where that is
        not finite."""
        for name, weight in self.weights.items():
            gradient = self.parameters[name].grad
            weight.grad = torch.zeros_like(weight) if gradient is None else gradient.float()
            self.parameters[name].grad = None
        norm = float(_whole(nn.utils.clip_grad_norm_(self.weights.values(), MAX_NORM)))
        if not isfinite(norm):
            raise ValueError(f"the training diverged: the gradient is {norm} at a learning rate of {rate:.3g}; begin anew with a lower one")
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.put()
        return norm

    def put(self) -> None:
        """The network gets the weights."""
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.grad = None
                self.parameters[name].copy_(weight)

    def adam_state(self) -> dict[str, Tensor]:
        """What AdamW remembers, made where it is not yet: by kind and weight."""
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            state = self.adam.state[weight]
            if not state:
                state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            found |= {f"{kind}/{name}": value for kind, value in state.items()}
        return found

    def save(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Whole weights and AdamW's state on the CPU. All workers must call it together."""
        weights, adam = ({name: _whole(value).cpu() for name, value in values.items()} for values in (self.weights, self.adam_state()))
        return weights, adam

    def load(self, weights: dict[str, Tensor], adam: dict[str, Tensor]) -> None:
        """What save gave. Raises ValueError where it is of other weights."""
        if weights.keys() != self.weights.keys():
            raise ValueError(f"the checkpoint is of other weights: {sorted(weights.keys() ^ self.weights.keys())[:3]}")
        with torch.no_grad():
            for name, value in self.weights.items():
                _fill(value, weights[name])
            for name, value in self.adam_state().items():
                _fill(value, adam[name])
        self.put()


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _fill(place: Tensor, values: Tensor) -> None:
    if isinstance(place, DTensor):
        place.copy_(distribute_tensor(values.to(place.device), place.device_mesh, place.placements))
    else:
        place.copy_(values)
