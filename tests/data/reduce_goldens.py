"""Makes the committed set of goldens (tests/data/goldens) from a full one: fewer images, sampled arrays, and of the weights only those that
no recipe gives. Knows the format of a set; nothing of the model.

    python -m tests.data.reduce_goldens SOURCE
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from tests.model.recipe import sample_indices, weight

OUT = Path(__file__).parent / "goldens"

ELEMENTS, BYTES, ROWS = 1024, 4096, 64
"""Kept of an array of numbers, of an array of packed bits, and of an array that was sampled by rows."""

PIXELS = 600_000
"""The pictures of images larger than this are left out; their grids stay."""

UNREAD = re.compile(r"layer\d_in|sticky|_glb_|trunk_|fpn_|dense|sparse|_sam_tokens|_all_|_stability|_area|text_rows|^b1b?_")
"""Arrays that no test reads, and the training steps of one sample, of which a third holds both."""

INPUTS = ("inputs_embeds", "b2_embeds", "dyn_in_masks")
"""Arrays that are fed to the model: whole."""

UNUSED = re.compile(r"\.lora_(sft|dpo|web)_[AB]\.")
"""Weights that GeoPixel never runs."""


def reduce_array(stored: Any, key: str, seed: int) -> dict[str, np.ndarray]:
    """The array `key` of a file, in whichever of the format's forms it is, in the sampled form; inputs, integers and what is small stay whole."""
    if f"{key}__rows" in stored:
        keep = spread(len(stored[f"{key}__rows"]), ROWS)
    elif f"{key}__idx" in stored:
        keep = spread(len(stored[f"{key}__idx"]), ELEMENTS)
    else:
        array = stored[key]
        bits = key.endswith("_bits")
        count = BYTES if bits else ELEMENTS
        if key in INPUTS or array.size <= count or (array.dtype.kind in "iub" and not bits):
            return {key: array}
        index = sample_indices(seed, f"reduced {key}", array.size, count)
        numbers = array.astype(np.float64)
        statistics = [numbers.sum(), numbers.mean(), numbers.std(), numbers.min(), numbers.max()]
        values = array.reshape(-1)[index]
        return {f"{key}__shape": np.array(array.shape), f"{key}__stats": np.array(statistics), f"{key}__idx": index.astype(np.int32), f"{key}__val": values}
    kept = {f"{key}__{part}": stored[f"{key}__{part}"] for part in ("shape", "stats") if f"{key}__{part}" in stored}
    return kept | {f"{key}__{part}": stored[f"{key}__{part}"][keep] for part in ("rows", "idx", "val") if f"{key}__{part}" in stored}


def spread(total: int, count: int) -> np.ndarray:
    """At most count of range(total), evenly spread."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(int))


def reduce_arrays(source: Path, name: str, seed: int) -> None:
    with np.load(source / f"{name}.npz") as stored:
        keys = dict.fromkeys(re.sub(r"__(shape|stats|rows|idx|val)$", "", key) for key in stored.files)
        reduced: dict[str, np.ndarray] = {}
        for key in keys:
            size = re.search(r"(\d+)x(\d+)", key) if name == "preprocess" else None
            if not UNREAD.search(key) and (size is None or int(size[1]) * int(size[2]) <= PIXELS):
                reduced |= reduce_array(stored, key, seed)
    np.savez_compressed(OUT / f"{name}.npz", **reduced)  # type: ignore[arg-type]  # numpy types its keywords as flags


def reduce_weights(source: Path, seed: int) -> None:
    """weights.json: name and shape of every weight that is used; model.safetensors: those of them that recipe.weight does not give bit for bit."""
    shapes: dict[str, list[int]] = {}
    others: dict[str, Tensor] = {}
    with safe_open(source / "model.safetensors", "pt") as file:
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            if not UNUSED.search(key):
                tensor = file.get_tensor(key)
                shapes[key] = list(tensor.shape)
                if not torch.equal(torch.from_numpy(weight(seed, key, tuple(tensor.shape))).to(tensor.dtype), tensor):
                    others[key] = tensor
    write_json("weights", shapes)
    (OUT / "model.safetensors").write_bytes(save(others))


def write_json(name: str, values: Any) -> None:
    (OUT / f"{name}.json").write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n")


def reduce_goldens(source: Path) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    seed = int(json.loads((source / "spec.json").read_text())["seed"])
    for name in ("tokenizer.model", "tokenizer_dummy_prefix.model"):
        shutil.copyfile(source / name, OUT / name)
    for name in ("spec", "preprocess", "evaluate", "tokenizer_goldens", "train_step", "state_dict_full"):
        values = json.loads((source / f"{name}.json").read_text())
        if name == "train_step":
            values = {key: value for key, value in values.items() if not UNREAD.search(f"{key}_")}
            for step in (value for value in values.values() if isinstance(value, dict) and "grad_norms" in value):
                step["grad_norms"] = {key: norm for key, norm in step["grad_norms"].items() if not UNUSED.search(key)}
        write_json(name, values)
    for name in ("preprocess", "vision", "lm", "grounding", "evaluate", "train_step"):
        reduce_arrays(source, name, seed)
    reduce_weights(source, seed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of a full set")
    reduce_goldens(parser.parse_args().source)
