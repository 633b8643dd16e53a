"""Tiny data sets laid out as the published ones."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from geopixel.evaluation.datasets import (
    caption_of,
    load_plain_pickle,
    phrases_of,
    read_chips,
    read_dataset,
    read_geopixeld,
    read_refsegrs,
    read_rrsisd,
)
from geopixel.labels import read_image

RNG = np.random.default_rng(5)
MASKS = RNG.random((3, 40, 60)) < 0.4


def encoded(mask: np.ndarray) -> dict[str, Any]:
    values = coco.encode(np.asfortranarray(mask, np.uint8))
    return values | {"counts": values["counts"].decode()}


def picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def rrsisd(tmp_path: Path) -> Path:
    """Three references: two sentences in val, one each in val and test."""
    sentences = (["the left ground track field", "a field on the left"], ["a bridge"], ["the ship"])
    refs = [
        {"ref_id": i, "ann_id": 10 + i, "image_id": 100 + i // 2, "category_id": 1, "split": split, "file_name": f"{i // 2}.png",
         "sent_ids": list(range(len(texts))), "sentences": [{"raw": text, "sent": text, "tokens": text.split(), "sent_id": 0} for text in texts]}
        for i, (texts, split) in enumerate(zip(sentences, ("val", "val", "test"), strict=True))
    ]  # fmt: skip
    folder = tmp_path / "rrsisd"
    folder.mkdir()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    instances = {
        "images": [{"id": 100 + i, "file_name": f"{i}.png", "height": 40, "width": 60} for i in range(2)],
        "annotations": [{"id": 10 + i, "image_id": 100 + i // 2, "segmentation": [encoded(mask)]} for i, mask in enumerate(MASKS)],
        "categories": [{"id": 1, "name": "field"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    for i in range(2):
        picture(tmp_path / "images" / "rrsisd" / "JPEGImages" / f"{i}.png", RNG.integers(0, 255, (40, 60, 3), np.uint8))
    return tmp_path


def test_rrsisd_gives_every_sentence_of_a_split_with_the_mask_of_its_reference(rrsisd: Path) -> None:
    samples = read_rrsisd(rrsisd, "val")
    assert [sample.expression for sample in samples] == ["the left ground track field", "a field on the left", "a bridge"]
    assert {sample.image.name for sample in samples} == {"0.png"}
    for sample, mask in zip(samples, (MASKS[0], MASKS[0], MASKS[1]), strict=True):
        np.testing.assert_array_equal(sample.truth(), mask)
    assert read_image(samples[0].image).shape == (40, 60, 3)
    assert [sample.expression for sample in read_dataset("rrsis-d", rrsisd, "test")] == ["the ship"]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no expression of split 'train', only test, val"):
        read_rrsisd(rrsisd, "train")


class Evil:
    """What runs a command when it is unpickled as usual."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_names_code_is_refused_and_runs_none_of_it(rrsisd: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (rrsisd / "rrsisd" / "refs(unc).p").write_bytes(pickle.dumps([{"split": "val", "sentences": Evil(rrsisd / "owned")}], protocol))
        with pytest.raises(ValueError, match=r"refs\(unc\)\.p is refused: it asks for posix\.mkdir"):
            read_rrsisd(rrsisd, "val")
        assert not (rrsisd / "owned").exists()
    (rrsisd / "rrsisd" / "refs(unc).p").write_bytes(b"\x80\x02not a pickle")
    with pytest.raises(ValueError, match="is refused"):
        read_rrsisd(rrsisd, "val")


def test_plain_pickles_of_every_protocol_are_read(tmp_path: Path) -> None:
    values = [{"a": [1, 2.5, None, True], "b": "wäldchen", "c": (1, 2), "f": 2**70}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "values.p").write_bytes(pickle.dumps(values, protocol))
        assert load_plain_pickle(tmp_path / "values.p") == values


def test_refsegrs_gives_every_line_of_a_split(tmp_path: Path) -> None:
    for i, mask in enumerate(MASKS[:2]):
        picture(tmp_path / "images" / f"{i}.tif", RNG.integers(0, 255, (40, 60, 3), np.uint8))
        picture(tmp_path / "masks" / f"{i}.tif", mask.astype(np.uint8) * 255)
    (tmp_path / "output_phrase_val.txt").write_text("0 paved road\n1 vehicle on the road\n1 building\n")
    samples = read_refsegrs(tmp_path, "val")
    assert [(sample.image.name, sample.expression) for sample in samples] == [("0.tif", "paved road"), ("1.tif", "vehicle on the road"), ("1.tif", "building")]
    np.testing.assert_array_equal(samples[1].truth(), MASKS[1])
    (tmp_path / "output_phrase_test.txt").write_text("0 road\n7\n")
    with pytest.raises(ValueError, match=r"output_phrase_test\.txt, line 2: wanted '<id> <expression>', got '7'"):
        read_refsegrs(tmp_path, "test")
    with pytest.raises(ValueError, match=r"output_phrase_train\.txt is not there"):
        read_refsegrs(tmp_path, "train")


def test_chips_are_paired_by_name_whatever_their_suffix(tmp_path: Path) -> None:
    for name, mask in zip("ab", MASKS, strict=False):
        picture(tmp_path / "img" / f"{name}.jpg", RNG.integers(0, 255, (40, 60, 3), np.uint8))
        picture(tmp_path / "msk" / f"{name}.png", np.dstack([mask * 255, mask * 0, mask * 0, np.full_like(mask, 1) * 255]).astype(np.uint8))
    samples = read_chips(tmp_path / "img", tmp_path / "msk", "building")
    assert [(sample.image.name, sample.expression) for sample in samples] == [("a.jpg", "building"), ("b.jpg", "building")]
    np.testing.assert_array_equal(samples[1].truth(), MASKS[1])
    picture(tmp_path / "img" / "c.jpg", RNG.integers(0, 255, (40, 60, 3), np.uint8))
    with pytest.raises(ValueError, match=r"c\.jpg has no mask"):
        read_chips(tmp_path / "img", tmp_path / "msk", "building")
    with pytest.raises(ValueError, match="holds no picture"):
        read_chips(tmp_path, tmp_path / "msk", "building")


def test_geopixeld_gives_descriptions_with_a_mask_for_every_seg(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "P0003_0_800_0_800.png", RNG.integers(0, 255, (30, 50, 3), np.uint8))
    drawn = "###........... #######....... .##########... .############# ..###########. ..#########... ...######..... ...####....... ....#........."
    text = "An airport with <p> two planes </p> [SEG] and <p> a hangar </p> [SEG]."
    rings = [[[[2, 3], [5, 3], [5, 7], [2, 7]], [[20, 10], [21, 10], [21, 11], [20, 11]]], [[[30, 5], [43, 8], [34, 13]]]]
    annotation = {"id": 3, "img": "P0003_0_800_0_800.png", "gcg_description": text, "polygons": rings}
    (tmp_path / "test" / "P0003_0_800_0_800.json").write_text(json.dumps(annotation))
    (sample,) = read_geopixeld(tmp_path, "test")
    masks = np.zeros((2, 30, 50), bool)
    masks[0, 3:8, 2:6] = masks[0, 10:12, 20:22] = True  # borders are inside, as cv2.fillPoly has it
    masks[1, 5:14, 30:44] = [[pixel == "#" for pixel in row] for row in drawn.split()]  # drawn by cv2.fillPoly of OpenCV 5.0
    np.testing.assert_array_equal(sample.truth(), masks)
    assert sample.description == text
    (tmp_path / "test" / "P0003_0_800_0_800.json").write_text(json.dumps(annotation | {"polygons": rings[:1]}))
    with pytest.raises(ValueError, match=r"P0003_0_800_0_800\.json: every \[SEG\] has one mask, got 1 masks for 2"):
        read_geopixeld(tmp_path, "test")
    with pytest.raises(ValueError, match="train is not there"):
        read_geopixeld(tmp_path, "train")


def test_phrases_belong_to_the_seg_behind_them_and_captions_are_plain() -> None:
    text = "A <p> harbour </p> near <p> large ships </p> [SEG], [SEG] and\n <p>a pier</p>  [SEG] ."
    assert phrases_of(text) == ["large ships", "", "a pier"]
    assert caption_of(text) == "A harbour near large ships , and a pier ."


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a data set is rrsis-d, refsegrs, geopixeld, got 'coco'"):
        read_dataset("coco", tmp_path, "test")
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not there"):
        read_dataset("rrsis-d", tmp_path, "test")
