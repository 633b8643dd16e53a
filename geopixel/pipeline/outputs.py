"""From stored predictions to what a run publishes: blocks, features, captions, pictures, the item; and what it all took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely

from geopixel import features, ledger, mosaic, polygonize, provenance, publish
from geopixel.cost import Spent, square_km
from geopixel.pipeline.request import Progress, Run, metres_per_pixel
from geopixel.pipeline.stored import RUN
from geopixel.storage import Folder
from geopixel.types import STATUS_CODES, Block, Description, State, Tile

PUBLISHED = (features.FEATURES, publish.ITEM, publish.QUICKLOOK, publish.REPORT)
"""What a run shows to others: there only while the run is finished."""


def write_block(run: Run, folder: Folder, block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> str:
    """Blends, writes and traces one block, unless that was done from tiles in the same states with the same threshold and its files are as they were
    written. Returns its id."""
    told = run.request.threshold, [(tile.id, states[tile.id]) for tile in tiles]
    made_from = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    stored = features.parts_states(folder, block)
    if stored is None or stored != f"{made_from} {mosaic.digest_block(folder, block)}":
        blended, parts = make_block(run, folder, block, tiles, states)
        mosaic.write_block(folder, block, blended)
        features.store_parts(folder, block, parts, f"{made_from} {mosaic.digest_block(folder, block)}")
    return block.id


def make_block(run: Run, folder: Folder, block: Block, tiles: Sequence[Tile], states: Mapping[str, State]) -> tuple[mosaic.BlockMosaic, pa.Table]:
    """A block blended from its stored predictions, and the parts of objects traced in it. Raises as ledger.load_prediction does."""
    predictions = {tile.id: ledger.load_prediction(folder, tile.id, states[tile.id]) for tile in tiles if tile.decided is None}
    prompts, area = len(run.request.prompts), run.area
    blended = mosaic.mosaic_block(block, tiles, lambda tile: predictions[tile.id], prompts=prompts, threshold=run.request.threshold, area=area)
    origin = provenance.trace_provenance(block, tiles, predictions, prompts=prompts, area=area)
    parts = polygonize.trace_block(
        blended.mask, blended.confidence, left=block.left, top=block.top, scene=blended.scene, scores=origin.scores, edge=origin.edge
    )
    return blended, parts


def trace_features(run: Run, folder: Folder, blocks: Iterable[Block]) -> pa.Table:
    """The features of the run, as features.SCHEMA has them, from what the blocks hold."""
    origin = features.Origin(run.grid, run.scenes, metres_per_pixel(run), run.request.model, run.weights_sha256, run.id)
    return features.build_features(polygonize.stitch(features.load_parts(folder, blocks)), run.request.outlines, origin)


def publish_run(
    run: Run,
    folder: Folder,
    states: ledger.States,
    blocks: Mapping[Block, Sequence[Tile]],
    submission: Callable[[], dict[str, Any]],
    progress: Progress,
) -> dict[str, Any]:
    """What is made of the finished blocks. submission: what this one took until now. Returns what the run came to, for run.json."""
    prompts = run.request.prompts
    progress("publish", 0, 1)
    table = trace_features(run, folder, blocks)
    folder.put(features.FEATURES, features.encode(table))
    found = _outlines(table)
    for index in range(len(prompts)) if run.request.cog else ():
        mosaic.write_cog(folder, index)
    if run.request.describe:
        seen = states.being("ok", "empty")

        def described(tile: Tile) -> Description | None:
            return ledger.load_prediction(folder, tile.id, states[tile.id]).description

        publish.store_captions(folder, seen, described, found, threshold=run.request.threshold)
    finished = {
        "tiles": ledger.recount(states),
        "features": {prompt: pc.sum(pc.equal(table["prompt"], prompt)).as_py() or 0 for prompt in prompts},
        "km2": {prompt: (pc.sum(table["area_m2"].filter(pc.equal(table["prompt"], prompt))).as_py() or 0.0) / 1e6 for prompt in prompts},
    }
    backdrop = publish.read_backdrop(run.scenes, run.grid, run.area)
    publish.draw_quicklook(
        folder, backdrop, area=run.area, features=found, prompts=prompts, failed=states.being("failed"), scenes=run.scenes, model=run.request.model
    )
    stored, name = folder.get_json(RUN), folder.url.rstrip("/").rsplit("/", 1)[-1]
    told = stored | {"finished": finished, "submissions": [*stored["submissions"], submission()]}
    publish.store_report(folder, backdrop, name=name, run=told, area=run.area, tiles=states.tiles, scenes=run.scenes)
    publish.store_item(folder, name=name, run=told, area=run.request.area, grid=run.grid, scenes=run.scenes)
    progress("publish", 1, 1)
    return finished


def _outlines(found: pa.Table) -> gpd.GeoDataFrame:
    """What pictures and captions need of the features: id, prompt, area_m2 and geometry, in OGC:CRS84."""
    polygons = shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False))
    columns = {name: found[name].to_numpy(zero_copy_only=False) for name in ("id", "prompt", "area_m2")}
    return gpd.GeoDataFrame(columns, geometry=polygons, crs="OGC:CRS84")


def count_spent(run: Run, folder: Folder, states: ledger.States, submissions: Sequence[Mapping[str, Any]]) -> Spent:
    """What the submissions of a run came to, by what is stored."""
    metres = metres_per_pixel(run)
    seen = states.tiles[states.tiles.to_read & (states.codes != STATUS_CODES["failed"])]
    silent: tuple[State, ...] = ("outside", "nodata", "cloud", "failed")
    return Spent(
        sizes=dict(zip(*(values.tolist() for values in np.unique(seen.size, return_counts=True)), strict=True)),
        km2=square_km(seen, metres),
        not_seen_km2={state: square_km(tiles, metres) for state in silent if (tiles := states.being(state))},
        read_bytes=sum(submission["read_bytes"] for submission in submissions),
        model_hours=sum(submission["worker_seconds"]["predict"] for submission in submissions) / 3600,
        output_bytes=folder.size(),
        on_gpu=any(backend.startswith("cuda") for submission in submissions for backend in submission["computed_with"]),
    )
