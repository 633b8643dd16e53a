"""The network: image tokens into the language model, the states of its [SEG] tokens into the mask decoder. Tensors only; what to ask and
how to answer is generation.py's and geopixel.py's."""

from __future__ import annotations

from torch import Tensor, nn

from geopixel.model.config import GeoPixelConfig
from geopixel.model.grounding import Grounding
from geopixel.model.language import LanguageModel
from geopixel.model.vision import VisionTokens


class GeoPixelNetwork(nn.Module):
    def __init__(self, config: GeoPixelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = config.language.hidden_size
        self.vision = VisionTokens(config)
        self.language = LanguageModel(config.language)
        self.text_hidden_fcs = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, config.grounding.hidden_size))
        self.grounding = Grounding(config.grounding)

    def mask_prompts(self, states: Tensor) -> Tensor:
        """Hidden states at [SEG] tokens (..., hidden) -> prompts of the mask decoder (..., grounding hidden)."""
        return self.text_hidden_fcs(states)
