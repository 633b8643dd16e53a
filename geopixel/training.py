"""Trains the bundled nano model from scratch on rendered scenes: tokenizer, network, masks, and the answer that a thing is not there.
Knows the model and the demo's renderer; nothing of tiles, catalogs or Ray."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from geopixel.demo import CLASSES, TRAINING_SEEDS, render_scene
from geopixel.model import processor
from geopixel.model.checkpoint import save_checkpoint
from geopixel.model.config import GeoPixelConfig, GroundingConfig, LanguageConfig, VisionConfig
from geopixel.model.geopixel import DESCRIBE_PROMPT, NO, PRESENCE_PROMPT, SEGMENT_ANSWER, SEGMENT_PROMPT, YES
from geopixel.model.grounding import ImageFeatures
from geopixel.model.language import PADDING, PREFIX
from geopixel.model.losses import DICE_WEIGHT, IGNORED, answer_loss, mask_loss
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.partial_lora import PartialLoRA
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, SEG, USER, Tokenizer

WORDINGS: dict[str, tuple[str, ...]] = {
    "building": ("building", "buildings", "the buildings", "house", "houses", "the houses", "roof", "roofs", "rooftops", "built structures"),
    "road": ("road", "roads", "the roads", "street", "streets", "paved roads", "the road network"),
    "water": ("water", "the water", "water body", "water bodies", "lake", "lakes", "pond", "river", "rivers"),
    "tree": ("tree", "trees", "the trees", "tree canopy", "forest", "woods"),
    "field": ("field", "fields", "the fields", "farmland", "cropland", "crop fields", "agricultural fields"),
    "vehicle": ("vehicle", "vehicles", "the vehicles", "car", "cars", "the cars", "parked cars"),
}
STRANGE = ("airplane", "ship", "ships", "swimming pool", "bridge", "train", "stadium", "solar panels", "beach", "glacier", "wind turbine", "storage tank")
"""Things that no scene holds: the answer is always that they are not there."""
ABSENT_ANSWER = "It is not there."
PHRASES = {"building": "buildings", "road": "roads", "water": "water", "tree": "trees", "field": "fields", "vehicle": "vehicles"}
"""What a description calls the classes."""

DESCRIPTION = "The image shows"

DESCRIBED = 0.15
"""Share of the examples that are described as a whole; the others are asked class by class."""

SMALLEST_SHARE = {"vehicle": 3e-4}
DEFAULT_SMALLEST_SHARE = 2e-3
"""Share of the image from which on a class must be found; with less of it than that, and more than none, the question is not asked."""

SMALLEST_CELL_SHARE = 0.02
"""Share of a token's cell that a class must cover to be counted as in it."""

ANSWER_WEIGHT = 4.0
"""Of the answer's cross-entropy: one token in eight of an answer carries its decision, so the published weight of 1 would teach presence slowly."""

PIXEL_METRES = (0.4, 1.3)
"""Range of the ground sample distance that the mask decoder sees, after its resize: tiles of 640 pixels at 0.3 to 1 m come to 0.4 to 1.25 m."""
SCENE_SIZE = 1536
SCENE_GSDS = (0.3, 0.4, 0.5, 0.6, 0.8)

SHARPEN_DICE = 2.0
"""Weight of Dice in the last stage: small and thin things are first found with too little confidence to be drawn."""


def nano_config(vocab_size: int) -> GeoPixelConfig:
    """The published architecture at about 3 M parameters: crops of 512 px, masks of 128 x 128."""
    return GeoPixelConfig(
        LanguageConfig(vocab_size, hidden_size=160, intermediate_size=384, layers=3, heads=5, kv_heads=1, max_positions=4096, plora_rank=16, plora_alpha=16.0),
        VisionConfig(hidden_size=96, intermediate_size=384, layers=3, heads=4, crop_size=512, patch_size=32),
        GroundingConfig(24, heads=1, blocks=(1, 2, 4, 1), global_blocks=(6,), hidden_size=96, mlp_size=256, image_size=512, multimask_fallback=False),
        hd_num=1,
        max_length=4096,
    )


def train_tokenizer(vocab_size: int = 640) -> bytes:
    """The tokenizer of the questions and answers that nano knows."""
    words = [wording for wordings in WORDINGS.values() for wording in wordings] + list(STRANGE)
    lines = [prompt.format(word) for word in words for prompt in (SEGMENT_PROMPT, PRESENCE_PROMPT)]
    lines += [DESCRIBE_PROMPT, SEGMENT_ANSWER, ABSENT_ANSWER, "user", "assistant"]
    lines += [f"{YES}.", f"{NO}.", DESCRIPTION, *PHRASES.values(), ", and"] * 20  # often enough to be pieces of their own
    return make_tokenizer(lines, vocab_size)


def make_tokenizer(lines: Sequence[str], vocab_size: int) -> bytes:
    """A sentencepiece model of these lines, laid out as InternLM2's: <unk>, <s>, </s>, bytes, pieces, chat markers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        user_defined_symbols=[f"[UNUSED_TOKEN_{i}]" for i in range(140, 147)],
        minloglevel=2,
    )
    return model.getvalue()


@dataclass(frozen=True, slots=True)
class Example:
    """One image, the questions asked about it and what should come back."""

    crops: Tensor
    """(1 + rows * columns, 3, crop, crop) float32"""
    grid: tuple[int, int]
    """(rows, columns)"""
    pixels: Tensor
    """(3, image_size, image_size) float32"""
    tokens: list[list[int]]
    """Per question: prompt and answer ids."""
    answer_starts: list[int]
    """Per question: where in its tokens the answer begins."""
    concepts: list[int]
    """Class of every mask of the answers, in their order, counted from 0."""
    shares: Tensor
    """(classes, S, S) float32: share of each mask cell that the class covers."""


class RenderedExamples(Dataset[Example]):
    """Example i is the same wherever and whenever it is drawn: everything random follows from (seed, i)."""

    def __init__(self, scenes: Sequence[Path], config: GeoPixelConfig, tokenizer: Tokenizer, count: int, seed: int) -> None:
        self.scenes, self.config, self.tokenizer, self.count, self.seed = list(scenes), config, tokenizer, count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng((self.seed, index))
        path = self.scenes[rng.integers(len(self.scenes))]
        scene = np.load(path, mmap_mode="r")
        metres = np.exp(rng.uniform(*np.log(PIXEL_METRES)))
        edge = int(np.clip(metres * self.config.grounding.image_size / SCENE_GSDS[int(path.stem) % len(SCENE_GSDS)], 384, SCENE_SIZE))
        top, left = rng.integers(0, SCENE_SIZE - edge + 1, 2)
        window = np.array(scene[top : top + edge, left : left + edge])
        window = np.rot90(window, int(rng.integers(4)))
        window = window[:, ::-1] if rng.integers(2) else window
        return self.example(jitter(rng, window[..., :3]), window[..., 3], rng)

    def example(self, rgb: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> Example:
        """rgb (height, width, 3) uint8, truth (height, width) uint8 class codes; rng chooses the questions and their wordings."""
        inside = torch.from_numpy(np.stack([truth == code for code in CLASSES.values()]).astype(np.float32))
        shares = dict(zip(CLASSES, inside.mean(dim=(1, 2)).tolist(), strict=True))
        asked = [name for name, share in shares.items() if not 0 < share < SMALLEST_SHARE.get(name, DEFAULT_SMALLEST_SHARE)]
        present = [name for name in asked if shares[name] > 0]
        if present and rng.random() < DESCRIBED:
            present.sort(key=lambda name: -shares[name])
            dialogues = [self.dialogue(DESCRIBE_PROMPT, describe(present))]
        else:
            answers = [SEGMENT_ANSWER if name in present else ABSENT_ANSWER for name in asked]
            words = [rng.choice(WORDINGS[name]) for name in asked]
            dialogues = [self.dialogue(SEGMENT_PROMPT.format(word), answer) for word, answer in zip(words, answers, strict=True)]
            dialogues.append(self.dialogue(SEGMENT_PROMPT.format(rng.choice(STRANGE)), ABSENT_ANSWER))
            name = str(rng.choice([*asked, "strange"]))
            word = rng.choice(STRANGE if name == "strange" else WORDINGS[name])
            dialogues.append(self.dialogue(PRESENCE_PROMPT.format(word), f"{YES if name in present else NO}."))
        starts, tokens = zip(*dialogues, strict=True)
        crops, grid = processor.clip_crops(rgb, self.config.hd_num, self.config.vision.crop_size)
        pixels = processor.sam_pixels(rgb, self.config.grounding.image_size)
        concepts = [list(CLASSES).index(name) for name in present]
        return Example(crops, grid, pixels, list(tokens), list(starts), concepts, F.adaptive_avg_pool2d(inside, self.config.grounding.mask_size))

    def dialogue(self, prompt: str, answer: str) -> tuple[int, list[int]]:
        """Where the answer starts, and the ids of prompt and answer."""
        question = self.tokenizer.encode(USER + prompt + ASSISTANT)
        return len(question), question + self.tokenizer.encode(answer + ANSWER_END) + [self.tokenizer.eos]


def describe(names: Sequence[str]) -> str:
    """A grounded description of the classes that are there, in the layout of the published answers."""
    things = [f"<p> {PHRASES[name]} </p> {SEG}" for name in names]
    return f"{DESCRIPTION} " + " and ".join(filter(None, [", ".join(things[:-1]), things[-1]])) + "."


def jitter(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Other light, another camera: gain and offset per channel, gamma, a little noise. (height, width, 3) uint8 in and out."""
    level = np.linspace(0, 1, 256, dtype=np.float32)[:, None] ** np.exp(rng.normal(0, 0.2))
    level = level * np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.06, 3)) + rng.normal(0, 0.03, 3)
    table = (level.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    x = np.take_along_axis(table, rgb.reshape(-1, 3), axis=0).reshape(rgb.shape)
    if rng.random() < 0.5:
        noise = rng.integers(-6, 7, rgb.shape, dtype=np.int16)
        x = (x + noise).clip(0, 255).astype(np.uint8)
    return x


def render_scenes(folder: Path, count: int, first_seed: int) -> list[Path]:
    """Scenes (SCENE_SIZE, SCENE_SIZE, 4) uint8, red, green, blue and class code, as .npy; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{first_seed + i}.npy" for i in range(count)]
    for path in paths:
        seed = int(path.stem)
        if seed not in TRAINING_SEEDS:
            raise ValueError(f"training draws its scenes from seeds {TRAINING_SEEDS}, got {seed}")
        if not path.exists():
            scene = render_scene(seed, size=SCENE_SIZE, gsd=SCENE_GSDS[seed % len(SCENE_GSDS)])
            part = path.with_suffix(".part")
            with part.open("wb") as file:
                np.save(file, np.dstack([scene.rgb, scene.truth]))
            part.rename(path)
    return paths


def initialise(network: GeoPixelNetwork) -> None:
    """Weights of unit gain, tokens of unit size, image adapters at zero. transformers' own start (0.02 for every weight) is made for wide
    layers: at nano's widths the signal all but dies on its way through the mask decoder, and so does its gradient."""
    nn.init.normal_(network.vision.row_end, std=0.5)
    nn.init.normal_(network.vision.separator, std=0.5)
    for module in (module for part in (network.language, network.vision.projector, network.text_hidden_fcs, network.grounding) for module in part.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        elif isinstance(module, nn.ConvTranspose2d):  # (in, out, 2, 2) with stride 2: every output pixel sees each input channel once
            nn.init.normal_(module.weight, std=module.weight.shape[0] ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5)
    for module in network.modules():
        if isinstance(module, PartialLoRA):
            nn.init.zeros_(module.plora_b.weight)


class Probes(nn.Module):
    """Linear readers that exist in training only and shorten it: what a [SEG] state asks for must be legible in it, what a cell of the image
    holds must be legible in its token, and so in SAM 2's features. Else all that is found only through the masks and answers built on it."""

    def __init__(self, config: GeoPixelConfig) -> None:
        super().__init__()
        self.concept = nn.Linear(config.language.hidden_size, len(CLASSES))
        self.cell = nn.Linear(config.language.hidden_size, len(CLASSES))
        channels = config.grounding.hidden_size
        self.maps = nn.ModuleList(nn.Conv2d(count, len(CLASSES), 1) for count in (channels, channels // 8, channels // 4))

    def cell_loss(self, views: Tensor, batch: Sequence[Example]) -> Tensor:
        """views: tokens of the global views (images, side, side, hidden)."""
        shares = F.adaptive_avg_pool2d(torch.stack([example.shares for example in batch]), views.shape[1])
        return F.binary_cross_entropy_with_logits(self.cell(views).permute(0, 3, 1, 2), (shares > SMALLEST_CELL_SHARE).float())

    def map_loss(self, features: ImageFeatures, batch: Sequence[Example]) -> Tensor:
        shares = torch.stack([example.shares for example in batch])
        maps = [probe(x) for probe, x in zip(self.maps, (features.embedding, *features.fine), strict=True)]
        return torch.stack([F.binary_cross_entropy_with_logits(x, F.adaptive_avg_pool2d(shares, x.shape[-1])) for x in maps]).sum()

    def concept_loss(self, states: Tensor, batch: Sequence[Example]) -> Tensor:
        """states (questions with a mask, of all examples, hidden)."""
        return F.cross_entropy(self.concept(states), torch.tensor([concept for example in batch for concept in example.concepts]))


@dataclass(frozen=True, slots=True)
class Losses:
    answers: Tensor
    masks: Tensor
    probes: Tensor

    @property
    def total(self) -> Tensor:
        return ANSWER_WEIGHT * self.answers + self.masks + self.probes


def tower_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example]) -> Losses:
    """The towers alone: what is where, before anybody asks."""
    views = network.vision.projector(network.vision.features(torch.stack([example.crops[0] for example in batch])))
    features = network.grounding.encode(torch.stack([example.pixels for example in batch]))
    zero = torch.zeros(())
    return Losses(zero, zero, probes.cell_loss(views, batch) + probes.map_loss(features, batch))


def forward_loss(network: GeoPixelNetwork, probes: Probes, batch: list[Example], *, bos: int, seg: int, dice_weight: float) -> Losses:
    """Losses of a batch of examples. The questions of an image are packed behind its tokens, as generation packs them."""
    language = network.language
    images = network.vision(torch.cat([e.crops for e in batch]), [e.grid for e in batch])
    starts = [1 + len(image) for image in images]
    start, length = max(starts), max(sum(map(len, e.tokens)) for e in batch)
    ids = torch.zeros((len(batch), start + length), dtype=torch.int64)
    labels = torch.full_like(ids, IGNORED)
    segments = torch.full_like(ids, PADDING)
    positions = torch.zeros_like(ids)
    image_mask = torch.zeros_like(ids, dtype=torch.bool)
    for row, example in enumerate(batch):
        ids[row, 0] = bos
        segments[row, : starts[row]] = PREFIX
        positions[row, : starts[row]] = torch.arange(starts[row])
        image_mask[row, 1 : starts[row]] = True
        at = start
        for segment, (tokens, answer_start) in enumerate(zip(example.tokens, example.answer_starts, strict=True)):
            span = slice(at, at + len(tokens))
            ids[row, span] = torch.tensor(tokens)
            labels[row, at + answer_start - 1 : at + len(tokens) - 1] = torch.tensor(tokens[answer_start:])
            segments[row, span] = segment
            positions[row, span] = starts[row] + torch.arange(len(tokens))
            at += len(tokens)
    embeddings = torch.index_put(language.tok_embeddings(ids), (image_mask,), torch.cat(images))
    hidden = language(embeddings, image_mask=image_mask, segments=segments, positions=positions)
    side = network.vision.side
    views = torch.stack([image[: side * (side + 1)].view(side, side + 1, -1)[:, :side] for image in images])
    features = network.grounding.encode(torch.stack([e.pixels for e in batch]))
    probed = probes.cell_loss(views, batch) + probes.map_loss(features, batch)
    answered = labels != IGNORED
    words = answer_loss(language.output(hidden[answered]), labels[answered])
    is_seg = (ids == seg) & (segments != PADDING)
    owner = torch.nonzero(is_seg)[:, 0]
    if not len(owner):
        return Losses(words, words * 0, probed)
    masks = network.grounding.decode(features.take(owner), network.mask_prompts(hidden[is_seg])[:, None])
    targets = torch.cat([e.shares[e.concepts] for e in batch])
    return Losses(words, mask_loss(masks.logits, targets, dice_weight), probed + probes.concept_loss(hidden[is_seg], batch))


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
        examples = RenderedExamples(paths, config, tokenizer, count * batch, seed + stage)
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
