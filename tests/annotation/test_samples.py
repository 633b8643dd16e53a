"""Samples as others read them: by the reader of evaluation, by the published rule for training; equal seeds give equal bytes; what a reviewer
wrote is held against the objects; all of a folder or nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image
from shapely import Geometry

from geopixel import annotation
from geopixel.annotation import Captioner, Labels, Wanted, annotate, review_samples, rewrite
from geopixel.annotation.descriptions import OBJECT_QUESTIONS, SCENE_QUESTIONS, describe
from geopixel.annotation.labels import rendered_labels
from geopixel.annotation.marks import draw_marks
from geopixel.annotation.review import apply_review, complaints, read_review
from geopixel.annotation.samples import read_samples, write_samples
from geopixel.aoi import read_area
from geopixel.errors import ReadError
from geopixel.evaluation.datasets import Grounded, caption_of, phrases_of, read_dataset
from geopixel.labels import decode_mask
from geopixel.search import find_scenes
from geopixel.tiling import choose_grid
from geopixel.types import Scene
from tests.annotation.scenes import draw
from tests.conftest import quiet

WANTED = Wanted(chip_size=192, validation=0.4, limit=5, seed=1)
"""Of chips of which there are ten."""
Ground = tuple[list[Scene], Labels, Geometry]


@pytest.fixture(scope="module")
def ground(catalog: Path) -> Ground:
    """The west of the demo's area."""
    area = read_area(str(catalog.with_name("aoi.geojson")), warn=pytest.fail)
    west, south, east, north = area.bounds
    window = area.intersection(shapely.box(west, south, west + 0.32 * (east - west), north))
    return find_scenes(str(catalog), window), rendered_labels(str(catalog), window), window


def make(ground: Ground, out: Path, wanted: Wanted = WANTED) -> dict[str, int]:
    scenes, labels, window = ground
    return annotate(out, scenes, choose_grid(scenes, None, None), labels, window, wanted, quiet)


@pytest.fixture(scope="module")
def samples(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("annotated") / "samples"
    make(ground, out)
    return out


def test_the_reader_of_evaluation_reads_them(samples: Path) -> None:
    chips = {chip.id: chip for chip in read_samples(samples)}
    read = 0
    for split in ("train", "val"):
        if not any((samples / split).glob("*.json")):
            continue
        for each in read_dataset("geopixeld", samples, split):
            assert isinstance(each, Grounded)
            chip = chips[each.image.stem]
            scene = chip.samples[0]
            assert each.description == scene.answer
            assert phrases_of(each.description) == [phrase.text for phrase in scene.phrases]
            np.testing.assert_array_equal(each.truth(), [chip.frame.mask(phrase.members) for phrase in scene.phrases])
            assert "<p>" not in caption_of(each.description)
            read += 1
    assert read == len(chips) == 5


def test_the_published_training_format(samples: Path) -> None:
    entries = {split: json.loads((samples / f"{split}.json").read_text()) for split in ("train", "val")}
    assert all(entries.values())
    assert not {entry["image"] for entry in entries["train"]} & {entry["image"] for entry in entries["val"]}
    levels = set()
    for split, listed in entries.items():
        for entry in listed:
            levels.add(entry["level"])
            question, answer = entry["conversations"]
            assert (question["from"], answer["from"]) == ("human", "bot")
            assert question["value"]
            picture = np.asarray(Image.open(samples / entry["image"]))
            assert entry["image"].startswith(f"{split}/")
            assert picture.shape == (192, 192, 3)
            assert answer["value"].count("[SEG]") == answer["value"].count("<p>") == len(entry["segmentation"]) > 0
            for segmentation in entry["segmentation"]:
                assert decode_mask(segmentation, 192, 192).any()
    assert levels == {"scene", "object", "group"}


def test_questions_begin_as_published() -> None:
    source = (Path(annotation.__file__).parents[1] / "model" / "geopixel.py").read_text()  # to import it takes seconds
    assert f'"{SCENE_QUESTIONS[0]}"' in source
    assert f'SEGMENT_PROMPT = "{OBJECT_QUESTIONS[0]}"' in source


def test_every_phrase_holds_when_it_is_read_again(samples: Path) -> None:
    for chip in read_samples(samples):
        for sample in chip.samples:
            assert complaints(chip.frame, sample) == []


def test_a_sentence_says_nothing_untrue_besides() -> None:
    """What a description adds to its phrases: of a scene with one red house left of a road, by the words themselves."""
    frame = draw([("building", 6, 10, 12, 12, "red"), ("road", 30, 0, 6, 64, "grey"), ("building", 50, 50, 5, 5, "blue"), ("building", 44, 5, 5, 5, "blue")])
    texts = " ".join(describe(frame, np.random.default_rng(seed), 3, 2)[0].answer for seed in range(25))
    assert "three buildings" in texts or "three structures" in texts
    assert "has a red roof" in texts
    assert "is large" in texts or "is big" in texts
    for untrue in ("green", "water", "is small and has a red", "which lies right of"):
        assert untrue not in texts
    assert len({describe(frame, np.random.default_rng(seed), 3, 2)[0].answer for seed in range(25)}) > 20, "many wordings"


def digest(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_equal_seeds_give_equal_bytes(samples: Path, ground: Ground, tmp_path: Path) -> None:
    make(ground, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(samples)


def test_a_chip_says_the_same_whatever_others_there_are(samples: Path, ground: Ground, tmp_path: Path) -> None:
    make(ground, tmp_path / "all", replace(WANTED, limit=None))
    everything = {chip.id: chip.samples for chip in read_samples(tmp_path / "all")}
    mine = {chip.id: chip.samples for chip in read_samples(samples)}
    assert mine.items() < everything.items()
    make(ground, tmp_path / "other", replace(WANTED, limit=3, seed=2))
    for chip in read_samples(tmp_path / "other"):
        assert chip.samples != everything[chip.id], "another seed says it otherwise"


def test_all_or_nothing(samples: Path, tmp_path: Path) -> None:
    chips = list(read_samples(samples))

    def broken():  # type: ignore[no-untyped-def]
        yield chips[0]
        raise ReadError("the disk is gone")

    with pytest.raises(ReadError):
        write_samples(tmp_path / "out", broken(), dict, 2)
    with pytest.raises(ValueError, match="nothing is written"):
        write_samples(tmp_path / "out", iter(()), dict, 1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="is there already"):
        write_samples(samples, chips, dict, 1)


def test_a_page_that_needs_nothing(samples: Path) -> None:
    page = (samples / "samples.html").read_text()
    assert page.count("<section>") == len(list(read_samples(samples)))
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "<script" not in page


def test_marks_are_where_their_masks_are() -> None:
    frame = draw([("building", 6, 10, 20, 20, "red"), ("building", 40, 40, 12, 12, "blue")], size=64)
    marked = draw_marks(frame.rgb, [frame.mask([0]), frame.mask([1])])
    scale = len(marked) // 64
    changed = (marked != np.kron(frame.rgb, np.ones((scale, scale, 1), np.uint8))).any(axis=2)
    inside = np.kron(frame.mask([0, 1]), np.ones((scale, scale), bool))
    assert changed[inside].any()
    assert not changed[~inside].any()
    first = marked[10 * scale, 6 * scale : 26 * scale]
    assert (first == first[0]).all(), "an outline of one colour"


def edit(folder: Path, change: dict[str, dict[str, object]]) -> None:
    path = folder / "review.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | change.get(line["id"], {})) + "\n" for line in lines))


@pytest.fixture
def copy(samples: Path, tmp_path: Path) -> Path:
    shutil.copytree(samples, tmp_path / "copy")
    return tmp_path / "copy"


def test_texts_come_back_as_they_went(copy: Path, tmp_path: Path) -> None:
    review_samples(copy, tmp_path / "reviewed", quiet)
    mine, other = digest(tmp_path / "reviewed"), digest(copy)
    del mine["annotation.json"], other["annotation.json"]
    assert mine == other


def test_reviewed_texts_are_held_against_the_objects(copy: Path, tmp_path: Path) -> None:
    chip = next(chip for chip in read_samples(copy) if len(chip.samples[0].phrases) > 2)
    name, answer = chip.name(0), chip.samples[0].answer
    phrase = phrases_of(answer)[0]
    better = f"From above, {answer}"
    edit(copy, {name: {"answer": better}})
    review_samples(copy, tmp_path / "better", quiet)
    assert next(each for each in read_samples(tmp_path / "better") if each.id == chip.id).samples[0].answer == better

    last = answer[: answer.rindex("<p>")]
    refused = {
        "phrases": last,
        "cannot be checked": answer.replace(f"<p>{phrase}</p>", "<p>the lovely castle</p>"),
        "means": answer.replace(f"<p>{phrase}</p>", f"<p>the largest {chip.frame.objects[0].category}</p>"),
    }
    for why, text in refused.items():
        edit(copy, {name: {"answer": text}})
        with pytest.raises(ValueError, match=f"sample {name}: .*{why}"):
            review_samples(copy, tmp_path / "refused", quiet)
    assert not (tmp_path / "refused").exists()

    edit(copy, {name: {"answer": refused["cannot be checked"], "by_hand": [1]}})
    counts = review_samples(copy, tmp_path / "by hand", quiet)
    assert counts["phrases by hand"] == 1
    vouched = next(each for each in read_samples(tmp_path / "by hand") if each.id == chip.id)
    assert vouched.by_hand == {0: (1,)}
    assert vouched.samples[0].phrases[0].text == "the lovely castle"
    assert vouched.samples[0].phrases[0].members == chip.samples[0].phrases[0].members


def test_questions_are_held_against_the_objects_too(copy: Path, tmp_path: Path) -> None:
    chip, index = next((chip, index) for chip in read_samples(copy) for index, sample in enumerate(chip.samples) if sample.level == "object")
    sample, name = chip.samples[index], chip.name(index)
    (phrase,) = phrases_of(sample.answer)
    holds = f"Be so kind as to show me {phrase[0].lower()}{phrase[1:]}, please!"
    edit(copy, {name: {"question": holds}})
    review_samples(copy, tmp_path / "asked", quiet)
    assert next(each for each in read_samples(tmp_path / "asked") if each.id == chip.id).samples[index].question == holds

    several = next(name for name in chip.frame.categories.tolist() if len(chip.frame.of(name)) > 1)
    refused = {
        "asks for other objects": f"Please segment {phrase} and the {several}",
        "cannot be checked": "Where is it?",
        "without <p>": f"Where is [SEG] <p>{phrase}</p>?",
        "got ' '": " ",
    }
    for why, text in refused.items():
        edit(copy, {name: {"question": text}})
        with pytest.raises(ValueError, match=f"sample {name}: its question.*{why}"):
            review_samples(copy, tmp_path / "refused", quiet)
    edit(copy, {name: {"question": "Where is it?", "by_hand": [0]}})
    review_samples(copy, tmp_path / "by hand", quiet)
    assert not (tmp_path / "refused").exists()


def test_all_that_does_not_hold_is_named_and_nothing_is_vouched_for_by_a_slip(copy: Path, tmp_path: Path) -> None:
    chip, other, *_ = read_samples(copy)
    edit(copy, {each.name(0): {"answer": each.samples[0].answer.replace("<p>", "<p>lovely ")} for each in (chip, other)})
    with pytest.raises(ValueError, match="; ".join(f"sample {each.name(0)}: phrase 1, .*cannot be checked.*" for each in (chip, other))):
        review_samples(copy, tmp_path / "refused", quiet)
    shutil.copy(copy / "review.jsonl", copy / "edited")
    for by_hand, why in (("1", "valid array"), ([1.9], "valid integer"), ([True], "valid integer"), ([99], "no phrase 99 to vouch for")):
        shutil.copy(copy / "edited", copy / "review.jsonl")
        edit(copy, {chip.name(0): {"by_hand": by_hand}})
        with pytest.raises(ValueError, match=why):
            review_samples(copy, tmp_path / "refused", quiet)


def test_a_review_must_be_whole(copy: Path, tmp_path: Path) -> None:
    path = copy / "review.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[1:]))
    with pytest.raises(ValueError, match=f"no line of sample {json.loads(lines[0])['id']}"):
        review_samples(copy, tmp_path / "out", quiet)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="is there twice"):
        read_review(path)
    path.write_text("".join([*lines, '{"id": "7_7-0", "question": "?", "answer": "!"}\n']))
    with pytest.raises(ValueError, match="does not hold: 7_7-0"):
        review_samples(copy, tmp_path / "out", quiet)
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="line 1: wanted an object"):
        read_review(path)


class Shouting:
    """A captioner that writes louder, and forgets a mask where it was told a long story."""

    def caption(self, image: np.ndarray, marks: np.ndarray, draft: str) -> str:
        assert image.shape == (192, 192, 3)
        assert marks.shape == (768, 768, 3)
        return draft.replace(".", "!") if draft.count("[SEG]") < 3 else draft.replace("[SEG]", "", 1)


def test_a_captioner_may_write_what_holds(copy: Path) -> None:
    captioner: Captioner = Shouting()
    short = [len(sample.phrases) < 3 for chip in read_samples(copy) for sample in chip.samples]
    assert rewrite(copy, captioner) == (sum(short), len(short) - sum(short))
    reviews = read_review(copy / "review.jsonl")
    for chip in read_samples(copy):
        for old, new in zip(chip.samples, apply_review(chip, reviews).samples, strict=True):
            assert new.answer == (old.answer.replace(".", "!") if len(old.phrases) < 3 else old.answer)


class Stumbling(Shouting):
    """Writes two texts and fails."""

    calls = 0

    def caption(self, image: np.ndarray, marks: np.ndarray, draft: str) -> str:
        self.calls += 1
        if self.calls > 2:
            raise ConnectionError("no more")
        return draft.replace(".", "!")


def test_a_captioner_leaves_alone_what_a_person_wrote_and_keeps_what_it_wrote_before_it_failed(copy: Path) -> None:
    chip = next(iter(read_samples(copy)))
    by_hand, edited = chip.name(0), chip.name(1)
    castle = re.sub("<p>.*?</p>", "<p>the lovely castle</p>", chip.samples[0].answer, count=1)
    edit(copy, {by_hand: {"answer": castle, "by_hand": [1]}, edited: {"answer": f"Well. {chip.samples[1].answer}"}})
    with pytest.raises(ConnectionError):
        rewrite(copy, Stumbling())
    reviews = read_review(copy / "review.jsonl")
    assert (reviews[by_hand].answer, reviews[by_hand].by_hand) == (castle, (1,))
    assert all("marks" in json.loads(line) for line in (copy / "review.jsonl").read_text().splitlines())
    assert reviews[edited].answer == f"Well! {chip.samples[1].answer.replace('.', '!')}"


def test_the_page_is_drawn_by_a_browser(samples: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no browser")
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", f"--screenshot={shot}"]
    subprocess.run([browser, *flags, (samples / "samples.html").as_uri()], check=True, capture_output=True, timeout=120)
    assert np.asarray(Image.open(shot).convert("RGB")).std() > 20
