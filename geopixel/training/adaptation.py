"""nano goes on to learn from real imagery and rendered scenes together, in three stages: SAM 2 alone on small windows, which is where most of the
computing goes; the words alone; then everything on windows of full size. The first two know each other only by the prompts that the start gives
for each concept, so that they may run side by side. The learning rate of a stage is level until its last steps, so that a stage can be stopped,
looked at, resumed with more steps, and ended when it is good or time is up: the same steps make the same model however often it was stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from geopixel.demo import CLASSES, TRAINING_SEEDS
from geopixel.model.checkpoint import load_model, save_checkpoint, weights_sha256
from geopixel.model.grounding import Grounding
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import Tokenizer
from geopixel.training.examples import Example, Teacher
from geopixel.training.losses import Losses, Probes, forward_loss, picture_loss, read_batch, talk_loss
from geopixel.training.real import Ground, building_grounds, dubai_grounds, naip_grounds
from geopixel.training.referring import ATOMS
from geopixel.training.rendered import render_scenes
from geopixel.training.scratch import fix_encoder, initialise_sam2
from geopixel.training.windows import MIXTURE, ZOOM, Windows
from geopixel.training.words import CONCEPTS

STAGES = ("pictures", "words", "together")
"""In their order; methods of Adaptation."""
PROMPT_NOISE = 0.2
"""Spread of the prompts around the remembered ones in the first stage, in shares of the spread between concepts."""
PICTURE_DICE = 3.0
"""Weight of Dice: with the published 0.5 what covers little of a window, or looks otherwise than at the sites that training saw, is found with too little
confidence to be drawn."""
REMEMBERED = 48
"""Examples from which the prompts of the start are remembered."""

WARM_UP = 50
LOGGED = 25
SAVE_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Stage:
    """How long a stage trains, and how."""

    steps: int
    decay: int
    """Last steps, in which the learning rate falls to zero."""
    batch: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Drawn(Dataset[Example]):
    """The examples of a range of numbers, for a loader."""

    draw: Callable[[int], Example]
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        return self.draw(self.indices[index])


@dataclass
class Adaptation:
    """A start, and what it is trained with. Every stage begins with the start's weights; stored stages are taken over from the folder work."""

    network: GeoPixelNetwork
    tokenizer: Tokenizer
    windows: Windows
    work: Path
    report: Callable[[str], None]
    taught: Sequence[str]
    """What the start knows: the classes of rendered scenes, or all CONCEPTS where it was adapted before."""
    about: Mapping[str, Any]
    """What the training is, for what it stores: see State."""
    workers: int = 0
    """Processes that draw windows; 0: the one that trains."""

    def __post_init__(self) -> None:
        self.probes = Probes(self.network.config).to(next(self.network.parameters()).device)
        remember_prompts(self.network, self.probes, self.windows, self.taught, bos=self.tokenizer.bos, seg=self.tokenizer.seg)

    def pictures(self, stage: Stage) -> list[list[float]]:
        """SAM 2 alone, at 1 / ZOOM of its size; the weights are the network's own."""
        full = self.network.grounding
        small = zoomed(self.network)
        self.network.grounding = small
        loss = partial(picture_loss, self.network, self.probes, dice_weight=PICTURE_DICE, noise=PROMPT_NOISE)
        curve = self._train("pictures", stage, nn.ModuleList([full, self.probes.maps, self.probes.sizes]), self.windows.picture, loss)
        self.network.grounding = full
        return curve

    def words(self, stage: Stage) -> list[list[float]]:
        """CLIP tower and language model alone, with phrases that mean single objects."""
        parts = nn.ModuleList([self.network.vision, self.network.language, self.network.text_hidden_fcs, self.probes.cell, self.probes.concept])
        loss = partial(talk_loss, self.network, self.probes, bos=self.tokenizer.bos, seg=self.tokenizer.seg)
        return self._train("words", stage, parts, self.windows.referring, loss)

    def together(self, stage: Stage) -> list[list[float]]:
        """Everything, at full size."""
        parts = nn.ModuleList([self.network, self.probes])
        loss = partial(forward_loss, self.network, self.probes, bos=self.tokenizer.bos, seg=self.tokenizer.seg, dice_weight=PICTURE_DICE)
        return self._train("together", stage, parts, self.windows.referring, loss)

    def _train(
        self, name: str, stage: Stage, parts: nn.Module, example: Callable[[int], Example], loss: Callable[[list[Example]], Losses]
    ) -> list[list[float]]:
        """Rows of step, minutes, and the mean losses of answers, masks and probes since the row before."""
        parameters = [parameter for parameter in parts.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
        state = State(self.work / f"{name}.pt", parts, optimizer, self.about)
        done, curve = state.load()
        began = time.monotonic() - 60 * (curve[-1][1] if curve else 0)
        saved = time.monotonic()
        recent: list[Tensor] = []
        device = next(self.network.parameters()).device
        indices = range(done * stage.batch, stage.steps * stage.batch)
        batches = iter(DataLoader(Drawn(example, indices), stage.batch, num_workers=self.workers, collate_fn=list))
        for step in range(done, stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * rate(step, stage)
            torch.manual_seed(self.windows.seed + step)  # of the noise on prompts
            examples = [example.to(device) for example in next(batches)]
            with denormals_as_zero():
                losses = loss(examples)
                optimizer.zero_grad(set_to_none=True)
                losses.total.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
            recent.append(torch.stack([losses.answers, losses.masks, losses.probes]).detach())
            if (step + 1) % LOGGED == 0 or step + 1 == stage.steps:
                means = [round(float(x), 4) for x in torch.stack(recent).mean(dim=0)]
                curve.append([step + 1, round((time.monotonic() - began) / 60, 1), *means])
                recent.clear()
                self.report(f"{curve[-1][1]:.1f} min: {name} {step + 1}/{stage.steps}: answers {means[0]}, masks {means[1]}, probes {means[2]}")
                if time.monotonic() - saved > SAVE_SECONDS or step + 1 == stage.steps:
                    state.save(step + 1, curve)
                    saved = time.monotonic()
        return curve


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Gradients next to nothing would take a CPU five times as long. Ends with the step: it holds for all that the thread computes."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def rate(step: int, stage: Stage) -> float:
    """Share of the learning rate at a step (from 0): a rise over WARM_UP, level, and a straight fall over the last steps."""
    return min(1.0, (step + 1) / WARM_UP, (stage.steps - step) / max(1, stage.decay))


def begin_encoder(network: GeoPixelNetwork) -> None:
    """SAM 2's image encoder anew: EfficientNet-Lite0 as ImageNet made it. The mask decoder keeps what it knew."""
    known = {name: value for name, value in network.grounding.state_dict().items() if "vision_encoder" not in name}
    sizes = replace(network.config.grounding, embed_size=0, heads=0, blocks=(), global_blocks=(), encoder="efficientnet-lite0")
    network.config = replace(network.config, grounding=sizes)
    grounding = Grounding(sizes)
    initialise_sam2(grounding)
    grounding.load_state_dict(known, strict=False)
    network.grounding = grounding.to(network.vision.row_end.device).train()


def zoomed(network: GeoPixelNetwork) -> Grounding:
    """The network's SAM 2 for images of 1 / ZOOM of its edge, over the very same parameters."""
    config = network.config.grounding
    size = config.image_size // ZOOM
    small = Grounding(type(config)(**{**asdict(config), "image_size": size}))
    small.load_state_dict(network.grounding.state_dict(keep_vars=True), assign=True)  # the Parameters themselves, not copies
    fix_encoder(small)  # assigned, they want gradients again
    return small.train()


@torch.no_grad()
def remember_prompts(network: GeoPixelNetwork, probes: Probes, windows: Windows, taught: Sequence[str], *, bos: int, seg: int) -> None:
    """The mean prompt with which the start asks for each concept that it was taught, into probes; the others get directions of their own, as far
    from their centre as those are, and so does what phrases add."""
    examples = [windows.example(index).to(probes.prompts.device) for index in range(REMEMBERED)]
    reads = [read_batch(network, examples[i : i + 4], bos=bos, seg=seg) for i in range(0, REMEMBERED, 4)]
    prompts, concepts = network.mask_prompts(torch.cat([read.states for read in reads])), torch.cat([read.concepts for read in reads])
    learnt = [place for place, name in enumerate(CONCEPTS) if name in taught and (concepts == place).any()]
    for place in learnt:
        probes.prompts[place] = prompts[concepts == place].mean(dim=0)
    centre = probes.prompts[learnt].mean(dim=0)
    spread = (probes.prompts[learnt] - centre).norm(dim=1).mean()
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(len(CONCEPTS) + len(ATOMS), len(centre), generator=generator).to(centre)
    directions *= spread / directions.norm(dim=1, keepdim=True)
    strange = [place for place in range(len(CONCEPTS)) if place not in learnt]
    probes.prompts[strange] = centre + directions[strange]
    probes.atoms[1:] = directions[len(CONCEPTS) :]


@dataclass(frozen=True, slots=True)
class State:
    """All that a stopped stage needs to go on."""

    path: Path
    parts: nn.Module
    optimizer: torch.optim.Optimizer
    about: Mapping[str, Any]
    """What this training is, as JSON has it: another one does not go on with it."""

    def load(self) -> tuple[int, list[list[float]]]:
        """Steps done and the curve so far; nothing of each where there is no state yet. Raises ValueError where it is of another training."""
        if not self.path.exists():
            return 0, []
        stored = torch.load(self.path, weights_only=True, map_location="cpu")
        if (was := stored.get("about")) != self.about:
            raise ValueError(f"{self.path} was left by another training ({was}), take another folder for work than for {self.about}")
        try:
            self.parts.load_state_dict(stored["parts"])
        except RuntimeError as error:
            raise ValueError(f"{self.path} was left by the training of another network, take another folder for work: {error}") from None
        self.optimizer.load_state_dict(stored["optimizer"])
        return stored["steps"], stored["curve"]

    def save(self, steps: int, curve: list[list[float]]) -> None:
        part = self.path.with_suffix(".part")
        weights = {"parts": self.parts.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({"about": dict(self.about), "steps": steps, "curve": curve, **weights}, part)
        part.rename(self.path)


def read_grounds(data: Path, leave_out: tuple[str, ...]) -> dict[str, list[Ground]]:
    """The grounds to train on, by kind. Raises ValueError where there are none."""
    readers: dict[str, tuple[Path, Callable[[Path], list[Ground]]]] = {
        "buildings": (data / "training" / "buildings", lambda folder: building_grounds(folder, leave_out)),
        "dubai": (data / "training" / "dubai", partial(dubai_grounds, kept_back=False)),
        "naip": (data / "imagery" / "naip-north-dakota", partial(naip_grounds, kept_back=False)),
    }
    grounds = {kind: read(folder) for kind, (folder, read) in readers.items() if folder.is_dir()}
    if not any(grounds.values()):
        raise ValueError(f"{data} has none of {', '.join(str(folder.relative_to(data)) for folder, _ in readers.values())}")
    return grounds


def adapt_nano(
    start: Path,
    out: Path,
    work: Path,
    data: Path,
    *,
    stages: Mapping[str, Stage],
    scenes: int,
    leave_out: tuple[str, ...] = (),
    seed: int = 0,
    anew: bool = False,
    kept: float = 0.0,
    device: str = "cpu",
    workers: int = 0,
    report: Callable[[str], None] = print,
) -> None:
    """Trains the checkpoint in the folder start on data and on rendered scenes, and writes it (float16) and training.json into out.

    data: a folder with training/buildings, training/dubai and imagery/naip-north-dakota, those of them that are there. leave_out: sites of the
    buildings that are not read. work: keeps the rendered scenes and the state of every stage, from which the same command goes on where it was
    stopped; also with more steps, as long as the stage's decay had not begun. stages: of each of STAGES how long. anew: see begin_encoder.
    kept: share of the start in the weights that are written, the mean of both: what is learnt from few places makes others worse, and this gives
    most of it back (Wortsman et al. 2022, arXiv:2109.01903). workers: processes that draw windows beside the one that trains.

    Raises ValueError for a share outside of 0 to 1 or with anew, for data, sites or a GPU that are not there, and for states of another training in work.
    """
    if not 0 <= kept <= 1 or (kept and anew):
        raise ValueError(f"of the start a share of 0 to 1 is kept, and nothing where its encoder begins anew, got {kept}")
    adaptation = prepare(start, work, data, scenes=scenes, leave_out=leave_out, seed=seed, anew=anew, device=device, report=report)
    adaptation.workers = workers
    parameters = list(adaptation.network.parameters())
    begun = [parameter.detach().clone() for parameter in parameters]
    curves = {name: getattr(adaptation, name)(stages[name]) for name in STAGES}
    with torch.no_grad():
        for parameter, before in zip(parameters, begun, strict=True):
            parameter.lerp_(before, kept)
    save_checkpoint(out, adaptation.network, (start / "tokenizer.model").read_bytes(), torch.float16)
    record = {
        **{name: asdict(stage) | {"minutes": curves[name][-1][1], "curve": curves[name]} for name, stage in stages.items() if curves[name]},
        "curve_columns": ["step", "minutes", "answers", "masks", "probes"],
        "scenes": scenes,
        "leave_out": list(leave_out),
        "seed": seed,
        "anew": anew,
        "kept": kept,
        "mixture": MIXTURE,
        "parameters": sum(p.numel() for p in adaptation.network.parameters()),
    }
    earlier = json.loads((start / "training.json").read_text())
    (out / "training.json").write_text(json.dumps({"adaptation": record, "start": earlier}, indent=1) + "\n")


def prepare(
    start: Path,
    work: Path,
    data: Path,
    *,
    scenes: int,
    leave_out: tuple[str, ...],
    seed: int,
    anew: bool = False,
    device: str = "cpu",
    report: Callable[[str], None],
) -> Adaptation:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"there is no GPU that CUDA knows, got the device {device}")
    torch.manual_seed(seed)
    about = {"start": weights_sha256(start), "leave_out": list(leave_out), "seed": seed, "scenes": scenes, "anew": anew}
    network, tokenizer = load_model(start, torch.float32, torch.device(device))
    network.train().requires_grad_(True)
    if anew:
        begin_encoder(network)
    fix_encoder(network.grounding)
    windows = Windows(render_scenes(work, scenes, TRAINING_SEEDS.start), read_grounds(data, leave_out), Teacher(network.config, tokenizer), seed)
    earlier = json.loads((start / "training.json").read_text())
    return Adaptation(network, tokenizer, windows, work, report, list(CONCEPTS if "adaptation" in earlier else CLASSES), about)
