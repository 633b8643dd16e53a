"""GeoPixel as a library: images and questions in, words and masks out. The image is looked at once and shared by all its questions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geopixel.model import checkpoint, generation, processor
from geopixel.model.config import find_model, read_config
from geopixel.model.grounding import upsample
from geopixel.model.network import GeoPixelNetwork
from geopixel.model.tokenizer import ANSWER_END, ASSISTANT, USER, Tokenizer

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
    """Stateless between calls; see from_pretrained."""

    def __init__(self, network: GeoPixelNetwork, tokenizer: Tokenizer, name: str) -> None:
        self.network, self.tokenizer, self.name = network, tokenizer, name
        self.config = network.config
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def from_pretrained(cls, name: str, *, device: str = "auto", dtype: str = "auto") -> GeoPixel:
        """The model called name: "nano" (bundled), a folder, or a hub id such as "MBZUAI/GeoPixel-7B".

        device "auto": CUDA where it is there, else the CPU. dtype "auto": bfloat16 on CUDA, float32 on the CPU.
        Raises CheckpointError where there is no such model or it does not fit.
        """
        folder = find_model(name)
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        kind = (torch.bfloat16 if place.type == "cuda" else torch.float32) if dtype == "auto" else getattr(torch, dtype)
        config = read_config(folder)
        return cls(checkpoint.load_network(folder, config, kind, place), checkpoint.read_tokenizer(folder), name)

    def ask(self, images: Sequence[np.ndarray], prompts: Sequence[str], *, max_new_tokens: int = 300, draft: str = "") -> list[list[Answer]]:
        """Every prompt about every image (height, width, 3) uint8: answers[image][prompt].

        draft is a text that the answers are likely to start with: it makes them faster, never different.
        Raises ValueError for images of another kind, no images, no or empty prompts, no room for an answer, or a prompt that does not fit
        the context.
        """
        if not images:
            raise ValueError("ask needs at least one image, got none")
        if not prompts or not all(prompt.strip() for prompt in prompts):
            raise ValueError(f"ask needs prompts that are not empty, got {list(prompts)!r}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        for image in images:
            processor.check_image(image)
        ids = [self.tokenizer.encode(USER + prompt + ASSISTANT) for prompt in prompts]
        return [self._ask_one(image, ids, max_new_tokens, self.tokenizer.encode(draft)) for image in images]

    def segment(self, images: Sequence[np.ndarray], concepts: Sequence[str]) -> list[list[Answer]]:
        """The referring question about each concept ("building", "the ships at the pier"): answers[image][concept]."""
        return self.ask(images, [SEGMENT_PROMPT.format(concept) for concept in concepts], max_new_tokens=SEGMENT_TOKENS, draft=SEGMENT_ANSWER + ANSWER_END)

    @torch.inference_mode()
    def _ask_one(self, image: np.ndarray, prompts: list[list[int]], max_new_tokens: int, draft: list[int]) -> list[Answer]:
        height, width = image.shape[:2]
        prefix, image_mask = self._prefix(image, max(map(len, prompts)), max_new_tokens)
        answers = generation.answer(
            self.network.language,
            prefix,
            image_mask,
            prompts,
            eos=self.tokenizer.eos,
            mask_token=self.tokenizer.seg,
            max_new_tokens=max_new_tokens,
            draft=draft,
        )
        states = torch.cat([answer.states for answer in answers])
        size = self.config.grounding.mask_size
        logits, scores, object_scores = np.zeros((0, size, size), np.float32), np.zeros(0, np.float32), np.zeros(0, np.float32)
        if len(states):
            pixels = processor.sam_pixels(image, self.config.grounding.image_size).to(self.device, self.dtype)
            masks = self.network.grounding.decode(self.network.grounding.encode(pixels[None]), self.network.mask_prompts(states)[None])
            logits, scores, object_scores = (x.float().cpu().numpy() for x in (masks.logits, masks.scores, masks.object_scores))
        ends = np.cumsum([len(answer.states) for answer in answers])
        parts = [slice(end - len(answer.states), end) for end, answer in zip(ends, answers, strict=True)]
        return [
            Answer(*self._text(answer.ids), logits[part], scores[part], object_scores[part], height, width)
            for answer, part in zip(answers, parts, strict=True)
        ]

    def _prefix(self, image: np.ndarray, longest_prompt: int, max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """What all prompts share: <s> and the image. Embeddings (1, tokens, hidden) and (1, tokens) bool, True on image tokens."""
        crops, grid = processor.clip_crops(image, self.config.hd_num, self.config.vision.crop_size)
        length = 1 + self.config.image_tokens(*grid) + longest_prompt + max_new_tokens
        if length > self.config.max_length:
            raise ValueError(
                f"image, prompt and answer must fit {self.config.max_length} tokens, got {length} "
                f"for {grid[0]} x {grid[1]} crops, a prompt of {longest_prompt} and an answer of {max_new_tokens}"
            )
        tokens = self.network.vision(crops.to(self.device, self.dtype), [grid])[0]
        start = self.network.language.tok_embeddings.weight[self.tokenizer.bos]
        image_mask = torch.ones((1, 1 + len(tokens)), dtype=torch.bool, device=self.device)
        image_mask[0, 0] = False
        return torch.cat([start[None], tokens])[None], image_mask

    def _text(self, ids: list[int]) -> tuple[str, list[str]]:
        text = self.tokenizer.decode(ids, skip_special=True).replace(ANSWER_END, "").strip()
        return text, [phrase.strip() for phrase in re.findall(r"<p>(.*?)</p>\s*\[SEG\]", text)]
