"""Laws: a caption reads as text, its phrases stand where they say, and name the features that their masks cover; describing changes no map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from shapely.affinity import translate

from geopixel import ledger
from geopixel.pipeline import SerialRunner, map_area
from geopixel.publish import CAPTIONS, store_captions
from geopixel.publish.backdrop import ID
from geopixel.publish.captions import PHRASES, tie_phrases
from geopixel.storage import Folder
from geopixel.types import HALO, Description, Grid, Tile
from tests.conftest import NANO, assert_equal_maps, demo_request, quiet

TILE = Tile(Grid("EPSG:32633", 0.5), 512, 3, -7)
WEST, NORTH = TILE.left * 0.5, -TILE.top * 0.5
"""Of the core, which is 256 m wide."""


def box(left: float, top: float, right: float, bottom: float) -> shapely.Geometry:
    """In pixels of the core."""
    return shapely.box(WEST + left / 2, NORTH - bottom / 2, WEST + right / 2, NORTH - top / 2)


def west_of(column: int) -> np.ndarray:
    """(160, 160) int8 logits over core and halo, 4 pixels each, sure of everything west of a pixel column of the core."""
    centres = (np.arange(160) + 0.5) * 4 - HALO
    return np.broadcast_to(np.where(centres < column, 40, -40), (160, 160)).astype(np.int8)


FEATURES = {
    "inside": box(10, 10, 100, 100),
    "outside": box(300, 10, 400, 100),
    "mostly inside": box(156, 200, 256, 220),  # 60 of its 100 columns are west of 216
    "mostly outside": box(176, 300, 276, 320),  # 40 are
    "half beyond the tile": box(-400, 400, 100, 420),  # of what lies in the core, all is
    "of another tile": box(-300, 10, -100, 100),
    "one pixel": box(20, 480, 21, 481),
    "a ring around the mask": box(0, 0, 512, 512) - box(0, 0, 300, 512),
}
TABLE = gpd.GeoDataFrame({ID: list(FEATURES)}, geometry=list(FEATURES.values()), crs="EPSG:32633")


def test_phrases_are_tied_to_the_features_that_their_masks_cover() -> None:
    text = "There are <p> old houses </p> [SEG] , [SEG] and <p> a lake </p> [SEG] beside <p> the road </p> ."
    described = Description(text, np.stack([west_of(216), west_of(0), west_of(-400)]))
    caption, phrases = tie_phrases(TILE, described, TABLE, 0.5)
    assert caption == "There are old houses, and a lake beside the road."
    assert [caption[p["start"] :].startswith(p["phrase"]) for p in phrases] == [True] * 3
    assert {p["phrase"]: p["feature_ids"] for p in phrases} == {
        "old houses": ["inside", "mostly inside", "half beyond the tile", "one pixel"],
        "a lake": [],
        "the road": [],
    }


def test_the_threshold_is_that_of_the_map() -> None:
    described = Description("<p> fog </p> [SEG]", np.full((1, 160, 160), 8, np.int8))  # a logit of 1: a probability of 0.73
    counts = [len(tie_phrases(TILE, described, TABLE, threshold)[1][0]["feature_ids"]) for threshold in (0.72, 0.74)]
    assert counts == [len(FEATURES) - 1, 0]


def test_the_file(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    other = replace(TILE, column=4)
    told = {TILE.id: Description("<p> houses </p> [SEG] .", west_of(216)[None])}
    store_captions(folder, [TILE, other], lambda tile: told.get(tile.id), TABLE.to_crs("OGC:CRS84"), threshold=0.5)
    table = gpd.read_parquet(tmp_path / CAPTIONS)
    assert list(table["tile_id"]) == [TILE.id, other.id]
    assert list(table["caption"]) == ["houses.", ""]
    assert pq.read_schema(tmp_path / CAPTIONS).field("phrases").type == PHRASES
    assert table.crs.to_authority() == ("OGC", "CRS84")
    assert table.to_crs(TILE.grid.crs).geometry.iloc[0].normalize().equals_exact(box(0, 0, 512, 512).normalize(), 1e-3)
    store_captions(folder, [], lambda tile: None, TABLE, threshold=0.5)
    assert len(gpd.read_parquet(tmp_path / CAPTIONS)) == 0


def test_describing_a_run_changes_nothing_else(catalog: Path, tmp_path: Path) -> None:
    request = demo_request(catalog)
    corner = translate(request.area.centroid, 0.003).buffer(0.0003)  # two tiles with houses
    runs = {}
    for describe in (False, True):
        runs[describe] = tmp_path / f"describe {describe}"
        map_area(replace(request, area=corner, describe=describe), Folder(str(runs[describe])), NANO, SerialRunner(), quiet)
    assert_equal_maps(runs[False], runs[True])
    assert not (runs[False] / CAPTIONS).exists()

    folder = Folder(str(runs[True]))
    tiles = ledger.load_plan(folder)
    states = ledger.read_states(folder, tiles)
    captions = gpd.read_parquet(runs[True] / CAPTIONS)
    assert list(captions["tile_id"]) == [tile.id for tile in tiles if states[tile.id] in ("ok", "empty")]
    assert captions["caption"].str.len().min() > 10
    assert not captions["caption"].str.contains(r"<p>|\[SEG\]").any()
    features = gpd.read_parquet(runs[True] / "features.parquet")
    known = dict(zip(features[ID], features["prompt"], strict=True))
    tied = [(phrase["phrase"], known[name]) for phrases in captions["phrases"] for phrase in phrases for name in phrase["feature_ids"]]
    assert len(tied) > 0
    item = json.loads((runs[True] / "item.json").read_text())
    assert item["assets"][CAPTIONS]["table:row_count"] == len(captions)
    assert "image-captioning" in item["properties"]["mlm:tasks"]
    assert map_area(replace(request, area=corner, describe=True), folder, NANO, SerialRunner(), quiet).worked == 0


@pytest.mark.parametrize(("text", "count"), [("<p> a </p> [SEG]", 0), ("none", 1)])
def test_a_description_has_a_mask_for_every_mark(text: str, count: int) -> None:
    with pytest.raises(ValueError, match="one mask for each"):
        Description(text, np.zeros((count, 8, 8), np.int8))
