"""A checkpoint in either layout, once and for all into our own: fewer bytes to read at every start. Streams: a shard is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from geopixel.model.checkpoint import Weights, read_parts, save_parts, save_weights

CPU = torch.device("cpu")


def convert(source: Path, out: Path, dtype: torch.dtype, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Writes the model in the folder source to the folder out, its weights in this dtype, and returns the bytes of the weights.

    Written beside out and renamed when whole: out is there complete or not at all. progress is told of tensors read and tensors in total.
    Raises ValueError where out holds something already, CheckpointError where source is no whole checkpoint.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"a model is written to a new or an empty folder, got {out}")
    config, _ = read_parts(source)
    weights = Weights(source, config)
    sizes = {name: prod(weights.shapes[name]) * dtype.itemsize for name in weights.places}

    def watched() -> Iterator[tuple[str, Tensor]]:
        for done, named in enumerate(weights.read(dtype, CPU)):
            progress(done, len(sizes))
            yield named

    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as beside:
        made = Path(beside) / out.name
        save_parts(made, config, (source / "tokenizer.model").read_bytes())
        save_weights(made, sizes, watched())
        made.rename(out)
    progress(len(sizes), len(sizes))
    return sum(sizes.values())
