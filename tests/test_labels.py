"""Laws of what is read of labels; the oracle of masks is pycocotools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from shapely import GeometryCollection, LineString, Polygon, box

from geopixel.labels import check_rings, decode_mask, draw_masks, encode_mask, optional, pair_chips, read_image, read_mask, read_polygons

MASKS = np.random.default_rng(5).random((2, 40, 60)) < 0.4


def encoded(mask: np.ndarray) -> dict[str, Any]:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_coco_masks_of_every_kind_are_read() -> None:
    np.testing.assert_array_equal(decode_mask(encoded(MASKS[0]), 40, 60), MASKS[0])
    np.testing.assert_array_equal(decode_mask([encoded(MASKS[0]), encoded(MASKS[1])], 40, 60), MASKS[0] | MASKS[1])
    column = np.zeros((4, 3), bool)
    column[1:3, 1] = True  # column by column: 5 off, 2 on, 5 off
    np.testing.assert_array_equal(decode_mask({"size": [4, 3], "counts": [5, 2, 5]}, 4, 3), column)
    box = np.zeros((10, 10), bool)
    box[2:5, 3:8] = True
    np.testing.assert_array_equal(decode_mask([[3, 2, 8, 2, 8, 5, 3, 5]], 10, 10), box)
    with pytest.raises(ValueError, match=r"size of its picture, \(60, 40\), got \(40, 60\)"):
        decode_mask(encoded(MASKS[0]), 60, 40)
    with pytest.raises(ValueError, match="run lengths or polygons, got {'size'"):
        decode_mask({"size": [4, 3]}, 4, 3)


def test_an_encoded_mask_is_text_that_decodes_to_it() -> None:
    assert encode_mask(MASKS[0]) == encoded(MASKS[0]) | {"counts": encoded(MASKS[0])["counts"].decode()}
    for mask in (MASKS[0], MASKS[0] & False, MASKS[0] | True):
        np.testing.assert_array_equal(decode_mask(encode_mask(mask), 40, 60), mask)


def test_polygons_are_repaired_and_other_kinds_left_out(tmp_path: Path) -> None:
    bowtie = Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    gpd.GeoDataFrame(geometry=[box(0, 0, 2, 2), LineString([(0, 0), (1, 1)]), bowtie], crs="EPSG:32645").to_file(tmp_path / "labels.gpkg")
    found = read_polygons(tmp_path / "labels.gpkg", "EPSG:32645")
    assert [polygon.is_valid for polygon in found] == [True, True]
    assert found[0].area == 4
    gpd.GeoDataFrame(geometry=[LineString([(0, 0), (1, 1)])], crs="EPSG:4326").to_file(tmp_path / "lines.gpkg")
    with pytest.raises(ValueError, match=r"lines\.gpkg holds no polygon"):
        read_polygons(tmp_path / "lines.gpkg", "EPSG:32645")


def test_polygons_of_collections_are_kept(tmp_path: Path) -> None:
    mixed = GeometryCollection([LineString([(0, 0), (9, 9)]), box(0, 0, 2, 2), box(5, 0, 6, 1)])
    gpd.GeoDataFrame(geometry=[mixed, None, box(0, 0, 3, 1)], crs="EPSG:32645").to_parquet(tmp_path / "mixed.parquet")
    assert [polygon.area for polygon in read_polygons(tmp_path / "mixed.parquet", "EPSG:32645")] == [5, 3]


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("id,name\n1,a\n")
    with pytest.raises(ValueError, match=r"table\.csv is a table without geometry"):
        read_polygons(tmp_path / "table.csv", "EPSG:32645")
    metres = {"type": "Polygon", "coordinates": [[[500000, 3e6], [500100, 3e6], [500100, 3000100], [500000, 3e6]]]}
    (tmp_path / "metres.geojson").write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": metres}))
    with pytest.raises(ValueError, match=r"metres\.geojson is in degrees \(WGS 84\), as far as it says, and has coordinates of 3000100"):
        read_polygons(tmp_path / "metres.geojson", "EPSG:32645")


def test_chips_are_of_eight_bits_and_masks_have_their_size(tmp_path: Path) -> None:
    for folder in ("img", "msk"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.full((40, 60), 3000, np.uint16)).save(tmp_path / "img" / "a.tif")
    with pytest.raises(ValueError, match=r"a\.tif has pixels of more than 8 bits \(Pillow's mode I;16\)"):
        read_image(tmp_path / "img" / "a.tif")
    Image.fromarray(MASKS[0]).convert("L").save(tmp_path / "msk" / "a.jpg")
    with pytest.raises(ValueError, match=r"a\.jpg is a JPEG"):
        read_mask(tmp_path / "msk" / "a.jpg")
    assert pair_chips(tmp_path / "img", tmp_path / "msk") == [(tmp_path / "img" / "a.tif", tmp_path / "msk" / "a.jpg")]
    Image.fromarray(MASKS[0, :30]).save(tmp_path / "msk" / "a.jpg", "PNG")
    with pytest.raises(ValueError, match=r"a\.jpg is not of the size of its picture .*a\.tif: \(40, 60\), got \(30, 60\)"):
        pair_chips(tmp_path / "img", tmp_path / "msk")
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "b.png")
    assert not draw_masks(check_rings([[[[1, 2]]], []]), tmp_path / "b.png").any()
    for wrong in ([[[[1, 2, 3]]]], [[[1, 2]]], [None], "polygons"):
        with pytest.raises(ValueError, match=r"for each object, a list of rings of \(x, y\), got "):
            check_rings(wrong)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as a picture"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"this needs nowhere: pip install 'geopixel-ray\[evaluate\]'"):
        optional("nowhere.at_all")
    with pytest.raises(ValueError, match=r"pip install 'geopixel-ray\[finetune\]'"):
        optional("nowhere.at_all", "finetune")
