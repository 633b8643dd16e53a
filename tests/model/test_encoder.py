"""EfficientNet-Lite0 against its published implementation in PyTorch, and as the encoder of a SAM 2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from geopixel.model.config import LITE_FLOPS, GroundingConfig
from geopixel.model.encoder import GIVEN, PUBLISHED_MEAN, PUBLISHED_STD, STAGES, Comparison, EfficientNetLite, Pyramid, PyramidConfig, fold_published
from geopixel.model.grounding import Grounding
from geopixel.training.scratch import give_unit_gain, initialise_sam2


@pytest.fixture(scope="module")
def published() -> EfficientNet:
    """Random weights, and normalisations that have something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EfficientNet.from_name("efficientnet-lite0").eval()
        for name, value in network.state_dict().items():
            if name.endswith(("running_var", "_bn0.weight", "_bn1.weight", "_bn2.weight")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "_bn0.bias", "_bn1.bias", "_bn2.bias")):
                value.normal_()
    return network


def published_maps(network: EfficientNet, pixels: Tensor) -> list[Tensor]:
    """What stands behind the last block of each given stage."""
    x = network._swish(network._bn0(network._conv_stem(pixels)))
    ends = [sum(blocks for _, blocks, *_ in STAGES[: stage + 1]) for stage in GIVEN]
    maps = []
    for number, block in enumerate(network._blocks, start=1):
        x = block(x)
        if number in ends:
            maps.append(x)
    return maps


def folded(published: EfficientNet, mean: float, std: float) -> EfficientNetLite:
    encoder = EfficientNetLite().eval()
    encoder.load_state_dict(fold_published(published.state_dict(), (mean,) * 3, (std,) * 3))
    return encoder


@torch.inference_mode()
def test_it_is_the_published_network(published: EfficientNet) -> None:
    """To the rim: where an odd number of zeros is put around, they are put where TensorFlow puts them."""
    for height, width in ((64, 96), (224, 32)):
        pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))
        theirs = published_maps(published, (pixels - PUBLISHED_MEAN) / PUBLISHED_STD)
        ours = folded(published, PUBLISHED_MEAN, PUBLISHED_STD)((pixels - PUBLISHED_MEAN) / PUBLISHED_STD)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_other_normalisations_change_the_rim_alone(published: EfficientNet) -> None:
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    normalisations = ((PUBLISHED_MEAN, PUBLISHED_STD), (0.4, 0.2))
    (one, *_), (other, *_) = (folded(published, mean, std)((pixels - mean) / std) for mean, std in normalisations)
    torch.testing.assert_close(one[..., :-6, :-6], other[..., :-6, :-6], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def test_sam_2_stands_on_it() -> None:
    """Maps of the sizes that the mask decoder wants, masks at a quarter of the edge, and gradients down to the first convolution of every part."""
    grounding = Grounding(GroundingConfig(0, 0, (), (), hidden_size=32, mlp_size=48, image_size=64, multimask_fallback=False, encoder="efficientnet-lite0"))
    features = grounding.encode(torch.rand(2, 3, 64, 64))
    assert features.embedding.shape == (2, 32, 4, 4)
    assert [x.shape for x in features.fine] == [(2, 4, 16, 16), (2, 8, 8, 8)]
    masks = grounding.decode(features, torch.rand(2, 3, 32))
    assert masks.logits.shape == (6, 16, 16)
    masks.logits.square().mean().backward()
    encoder = grounding.sam2.vision_encoder.backbone
    first = (*(path[0] for path in encoder.upward), *(part for each in encoder.compare for part in (each.measure, each.border)))
    for layer in (encoder.trunk.stem.convolution, *encoder.lateral, *encoder.merge, *first):
        assert layer.weight.grad.abs().sum() > 0


@torch.inference_mode()
def test_fine_maps_know_what_lies_far_away() -> None:
    """A pixel changes the finest map of the pyramid further off than the trunk's map of the same stride reaches: that hangs on what lies near."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pyramid = Pyramid(PyramidConfig()).eval()
        give_unit_gain(pyramid)
    pixels = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    other = pixels.clone()
    other[..., 8, 8] += 1
    near = (pyramid.trunk(pixels)[0] - pyramid.trunk(other)[0])[0].abs().sum(dim=0)
    far, changed = (pyramid(each).intermediate_hidden_states[0][0] for each in (pixels, other))
    assert near[:8, :8].any()
    assert not near[16:, 16:].any()
    assert (far - changed)[16:, 16:].any()


@torch.inference_mode()
def test_coarse_maps_know_the_fine_ones_once_they_have_learnt_to() -> None:
    """A new pyramid's path back up adds nothing, nor does what it compares; with weights, all maps but the finest change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        grounding = Grounding(GroundingConfig(0, 0, (), (), hidden_size=32, mlp_size=48, image_size=64, encoder="efficientnet-lite0"))
        initialise_sam2(grounding)
    pyramid = grounding.sam2.vision_encoder.backbone
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    begun = pyramid(pixels).intermediate_hidden_states
    for first in (*(path[0] for path in pyramid.upward), *(each.measure for each in pyramid.compare)):
        first.weight.mul_(2)
    assert all(map(torch.equal, begun, pyramid(pixels).intermediate_hidden_states))
    for path in pyramid.upward:
        path[-1].bias.add_(1)
    (finest, *coarse), (same, *changed) = begun, pyramid(pixels).intermediate_hidden_states
    assert torch.equal(finest, same)
    assert all((x != y).any() for x, y in zip(coarse, changed, strict=True))


def comparison(border: float, steps: int = 8) -> Comparison:
    """Measures what it is given. border: of a place where channel 3 is 1, minus it where that is 0."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        compare = Comparison(4, steps).eval()
        compare.measure.weight.copy_(torch.eye(4)[..., None, None])
        compare.measure.bias.zero_()
        compare.border.weight.zero_()
        compare.border.weight[0, 3, 1, 1] = 2 * border
        compare.border.bias.fill_(-border)
    return compare


@torch.inference_mode()
def test_every_place_is_compared_with_the_most_of_its_image() -> None:
    """What becomes the most of a measure is felt everywhere in its image, and in no other; what stays below it near by only, where all is border."""
    compare = comparison(border=500.0)
    images = torch.rand(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    images[:, 3] = 1
    before = compare(images)
    for corner, felt in ((2.0, (slice(None), slice(None))), (-1.0, (slice(2), slice(2)))):
        other = images.clone()
        other[0, :3, 0, 0] = corner
        expected = torch.zeros(2, 16, 16, dtype=torch.bool)
        expected[0][felt] = True
        assert torch.equal((compare(other) != before).any(dim=1), expected)


@torch.inference_mode()
def test_an_object_has_the_most_that_any_place_of_it_shows() -> None:
    """Against scipy's maximum of every connected part; what lies between objects has nothing to show."""
    rng = np.random.default_rng(0)
    labels, count = ndimage.label(ndimage.binary_opening(rng.random((24, 24)) > 0.45, np.ones((2, 2))), np.ones((3, 3)))
    assert count > 3
    measures = rng.random((3, 24, 24), np.float32)
    image = np.concatenate([measures, (labels == 0)[None].astype(np.float32)])[None]
    compare = comparison(border=50.0, steps=24 * 24)
    compare.tell = torch.nn.Identity()
    told = (compare(torch.from_numpy(image)) - torch.from_numpy(image))[0, :3].numpy()
    for measure, below in zip(measures, told, strict=True):
        most = ndimage.maximum(measure, labels, range(1, count + 1))
        np.testing.assert_allclose(below[labels > 0], most[labels[labels > 0] - 1] - most.max(), atol=1e-5)
        assert (below[labels == 0] < -40).all()


def test_the_plan_knows_what_it_costs() -> None:
    """Counted by torch, without numbers."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        Pyramid(PyramidConfig())(torch.zeros(1, 3, 512, 512))
    assert counter.get_total_flops() / 512**2 == pytest.approx(LITE_FLOPS, rel=0.05)


def test_an_encoder_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="hiera, efficientnet-lite0, got 'resnet'"):
        GroundingConfig(0, 0, (), (), encoder="resnet")
