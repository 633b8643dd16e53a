"""GeoPixel as a library: images and questions in, words and masks out. The image is looked at once and shared by all its questions."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from geopixel.model import attention as kernels
from geopixel.model import checkpoint, generation, processor
from geopixel.model.config import crop_grid, find_model
from geopixel.model.grounding import upsample
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENT_PROMPT = "Could you provide a segmentation mask for {} in this image?"
"""The paper's referring prompt (arXiv:2501.13925)."""
SEGMENT_ANSWER = "It is [SEG]."
"""What the referring answer is likely to be: a draft, checked against the model, never trusted."""

DESCRIBE_PROMPT = (
    "Can you provide a thorough description of the this image? Please output with interleaved segmentation masks for the corresponding phrases."
)
"""The paper's prompt for a grounded description, as the released weights were trained on it, its slip included."""
PRESENCE_PROMPT = "Is there any {} in this image? Answer yes or no."
YES, NO = "Yes", "No"
"""How an answer to PRESENCE_PROMPT begins."""

SEGMENT_TOKENS = 64
"""Longest referring answer: one sentence, with room for more than one mask."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer about one image of height x width pixels."""

    text: str
    phrases: list[str]
    """The phrase before each [SEG], where the answer marks phrases with <p> </p>."""
    logits: np.ndarray
    """(N, S, S) float32, one low-resolution mask for each [SEG], positive inside the object; N is 0 where the thing is not there."""
    scores: np.ndarray
    """(N,) float32: the IoU that the decoder expects of its mask."""
    object_scores: np.ndarray
    """(N,) float32: logit of the object being there at all."""
    height: int
    width: int

    @property
    def masks(self) -> np.ndarray:
        """(N, height, width) float32 probabilities."""
        return upsample(torch.from_numpy(self.logits), self.height, self.width).sigmoid().numpy()


class GeoPixel:
    """Remembers nothing between calls but the batch size that fits; see from_pretrained."""

    def __init__(self, network: GeoPixelNetwork, tokenizer: Tokenizer, name: str, attention: str = "auto") -> None:
        self.network, self.tokenizer, self.name = network, tokenizer, name
        self.config = network.config
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.attention = kernels.choose(attention, self.device, self.dtype)
        network.language.use(self.attention)
        self.batch_size = 16 if self.device.type == "cuda" else 1
        """Images that are computed together, at most. Where GPU memory does not suffice it is halved and stays so."""

    @classmethod
    def from_pretrained(cls, name: str, *, device: str = "auto", dtype: str = "auto", attention: str = "auto") -> GeoPixel:
        """The model called name: "nano" (bundled), a folder, or a hub id such as "MBZUAI/GeoPixel-7B".

        device "auto": CUDA where it is there, else the CPU. dtype "auto": bfloat16 on CUDA, float32 on the CPU; or one of checkpoint.DTYPES.
        attention: "auto" or one of attention.KERNELS; which it came to is in the attribute of that name.
        Raises CheckpointError where there is no such model or it does not fit, ValueError for what dtype and attention cannot be.
        """
        folder = find_model(name)
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        kind = checkpoint.parse_dtype(("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype)
        kernel = kernels.choose(attention, place, kind)
        network, tokenizer = checkpoint.load_model(folder, kind, place)
        return cls(network, tokenizer, name, kernel)

    def ask(
        self,
        images: Sequence[np.ndarray],
        prompts: Sequence[str] | Sequence[Sequence[str]],
        *,
        history: Sequence[tuple[str, str]] = (),
        max_new_tokens: int = 300,
        draft: str = "",
    ) -> list[list[Answer]]:
        """Every prompt about every image (height, width, 3) uint8: answers[image][prompt]. prompts: one list for all images, or one for each.

        history: earlier turns (prompt, answer) that come before each prompt. draft is a text that the answers are likely to start with: it
        makes them faster, never different. Where dynamic NTK is active (a sequence of more than max_positions tokens, beyond what the
        published 7B model is ever given) no cache can equal the published model, and the answer is computed without one, slowly.
        Raises ValueError for images of another kind, no images, no or empty prompts, no room for an answer, or an image and a prompt that do
        not fit the context.
        """
        asked = self._prompts(images, prompts)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        turns = "".join(USER + question + ASSISTANT + said + ANSWER_END + "\n" for question, said in history)
        ids = [[self.tokenizer.encode(turns + USER + prompt + ASSISTANT) for prompt in row] for row in asked]
        hint = self.tokenizer.encode(draft)

        def answer(part: slice) -> list[list[Answer]]:
            prefixes, image_masks = self._prefixes(images[part], ids[part], max_new_tokens)
            answers = self._answer(prefixes, image_masks, ids[part], max_new_tokens, hint)
            return self._masks(images[part], answers)

        return self._in_batches(len(images), answer)

    def segment(self, images: Sequence[np.ndarray], concepts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[Answer]]:
        """The referring question about each concept ("building", "the ships at the pier"): answers[image][concept]. Raises as ask does."""
        prompts = [[SEGMENT_PROMPT.format(concept) for concept in row] for row in self._prompts(images, concepts)]
        return self.ask(images, prompts, max_new_tokens=SEGMENT_TOKENS, draft=SEGMENT_ANSWER + ANSWER_END)

    def describe(self, images: Sequence[np.ndarray], *, max_new_tokens: int = 1024) -> list[Answer]:
        """A grounded description of each image: text whose phrases have masks. Raises as ask does."""
        return [answer for (answer,) in self.ask(images, [DESCRIBE_PROMPT], max_new_tokens=max_new_tokens)]

    def presence(self, images: Sequence[np.ndarray], concepts: Sequence[str]) -> np.ndarray:
        """How probable each concept is in each image, (images, concepts) float32: P(yes) against P(no) as the first word of the answer to a
        yes/no question. No answer is written: one short forward behind the image's tokens. Of nano it tells which image rather has a concept,
        not whether it has: most values are above 0.5 (its "No" weighed less in training). Raises as ask does, and ValueError beyond max_positions
        (see ask)."""
        asked = self._prompts(images, concepts)
        ids = [[self.tokenizer.encode(USER + PRESENCE_PROMPT.format(concept) + ASSISTANT) for concept in row] for row in asked]
        words = [self.tokenizer.encode(word)[0] for word in (YES, NO)]

        def probability(part: slice) -> list[np.ndarray]:
            prefixes, image_masks = self._prefixes(images[part], ids[part], 1)
            logits = generation.first_logits(self.network.language, prefixes, image_masks, ids[part])
            return [x[:, words].float().softmax(-1)[:, 0].cpu().numpy() for x in logits]

        rows: list[np.ndarray] = self._in_batches(len(images), probability)
        return np.stack(rows)

    def _prompts(self, images: Sequence[np.ndarray], prompts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """Checked, and one list an image."""
        if not len(images):
            raise ValueError("there must be at least one image, got none")
        for image in images:
            processor.check_image(image)
        if isinstance(prompts, str):
            raise ValueError(f"prompts must be a list, got the string {prompts!r}")
        rows: list[list[Any]] = [list(prompts)] * len(images)
        if not all(isinstance(prompt, str) for prompt in prompts):
            rows = [list(row) if isinstance(row, Sequence) and not isinstance(row, str) else [] for row in prompts]
        if len(rows) != len(images) or not all(row and all(isinstance(prompt, str) and prompt.strip() for prompt in row) for row in rows):
            raise ValueError(f"prompts must be texts that are not empty, one list for all images or one for each of {len(images)}, got {list(prompts)!r}")
        for prompt in {prompt for row in rows for prompt in row}:
            prompt.encode()  # half a character is a UnicodeEncodeError, which is a ValueError
        return rows

    def _in_batches(self, count: int, work: Callable[[slice], list[T]]) -> list[T]:
        """What work makes of all images, so many at once as fit."""
        done: list[T] = []
        while len(done) < count:
            size = min(self.batch_size, count - len(done))
            try:
                done += work(slice(len(done), len(done) + size))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.batch_size = size // 2
            if self.batch_size < size:  # out here the exception, and with it the tensors of the attempt, is gone
                torch.cuda.empty_cache()
        return done

    @torch.inference_mode()
    def _prefixes(self, images: Sequence[np.ndarray], prompts: Sequence[Sequence[Sequence[int]]], max_new_tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """What the prompts of an image share, <s> and the image: per image embeddings (tokens, hidden) and (tokens,) bool, True on image tokens."""
        grids = []
        for image, asked in zip(images, prompts, strict=True):
            grids.append(crop_grid(image.shape[1], image.shape[0], self.config.hd_num, self.config.vision.crop_size))
            rows, columns = grids[-1]
            longest = max(map(len, asked))
            length = 1 + self.config.image_tokens(rows, columns) + longest + max_new_tokens
            if length > self.config.max_length:
                raise ValueError(
                    f"image, prompt and answer must fit {self.config.max_length} tokens, got {length} "
                    f"for {rows} x {columns} crops, a prompt of {longest} and an answer of {max_new_tokens}"
                )
        crops = [processor.clip_crops(image, self.config.hd_num, self.config.vision.crop_size, self.device)[0] for image in images]
        start = self.network.language.tok_embeddings.weight[self.tokenizer.bos]
        prefixes = [torch.cat([start[None], tokens]) for tokens in self.network.vision(torch.cat(crops).to(self.dtype), grids)]
        return prefixes, [torch.arange(len(prefix), device=self.device) > 0 for prefix in prefixes]

    def _answer(
        self, prefixes: list[Tensor], image_masks: list[Tensor], prompts: Sequence[list[list[int]]], max_new_tokens: int, draft: list[int]
    ) -> list[list[generation.Answer]]:
        limits = {"eos": self.tokenizer.eos, "mask_token": self.tokenizer.seg, "max_new_tokens": max_new_tokens}
        language = self.network.language
        longest = max(len(prefix) + max(map(len, asked)) for prefix, asked in zip(prefixes, prompts, strict=True)) + max_new_tokens
        if language.config.rope_factor is not None and longest > language.config.max_positions:
            logger.warning("dynamic NTK is active beyond %d tokens: answering without a key-value cache, which is slow", language.config.max_positions)
            return generation.answer_uncached(language, prefixes, image_masks, prompts, **limits)
        return generation.answer(language, prefixes, image_masks, prompts, draft=draft, **limits)

    @torch.inference_mode()
    def _masks(self, images: Sequence[np.ndarray], answers: list[list[generation.Answer]]) -> list[list[Answer]]:
        """The masks of all answers in one pass of the decoder. SAM 2 sees the images that have any."""
        states = torch.cat([answer.states for row in answers for answer in row])
        size = self.config.grounding.mask_size
        logits, scores, object_scores = np.zeros((0, size, size), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32)
        counts = [sum(len(answer.states) for answer in row) for row in answers]
        if len(states):
            seen = [image for image, count in zip(images, counts, strict=True) if count]
            pixels = torch.stack([processor.sam_pixels(image, self.config.grounding.image_size, self.device) for image in seen])
            features = self.network.grounding.encode(pixels.to(self.dtype))
            owner = torch.arange(len(seen), device=self.device).repeat_interleave(torch.tensor([count for count in counts if count], device=self.device))
            masks = self.network.grounding.decode(features.take(owner), self.network.mask_prompts(states)[:, None])
            logits, scores, object_scores = (x.float().cpu().numpy() for x in (masks.logits, masks.scores, masks.object_scores))
        made: list[list[Answer]] = []
        at = 0
        for image, row in zip(images, answers, strict=True):
            made.append([])
            for answer in row:
                part = slice(at, at := at + len(answer.states))
                made[-1].append(Answer(*self._text(answer.ids), logits[part], scores[part], object_scores[part], *image.shape[:2]))
        return made

    def _text(self, ids: list[int]) -> tuple[str, list[str]]:
        text = self.tokenizer.decode(ids, skip_special=True).replace(ANSWER_END, "").strip()
        return text, [phrase.strip() for phrase in re.findall(r"<p>((?:(?!<p>).)*?)</p>\s*\[SEG\]", text)]
