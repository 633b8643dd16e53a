"""Profiles on real items of the catalogs they are for, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pystac
import pytest

from geopixel.profiles import load_profiles, parse_profile, show
from geopixel.types import Asset, Quality

TIFF = "image/tiff; application=geotiff"
PLAIN = [{"name": name, "common_name": name} for name in ("red", "green", "blue")]


def item(assets: dict[str, dict[str, Any]], **properties: Any) -> pystac.Item:
    described = {name: {"href": f"https://example.org/{name}.tif", "type": TIFF, **fields} for name, fields in assets.items()}
    return pystac.Item.from_dict({
        "type": "Feature", "stac_version": "1.1.0", "id": "a", "geometry": None, "links": [], "assets": described,
        "properties": {"datetime": "2023-01-01T00:00:00Z", **properties},
    })  # fmt: skip


def names(*assets: str) -> dict[str, dict[str, Any]]:
    return {name: {} for name in assets}


def quality(name: str, values: tuple[int, ...] = (), bits: tuple[int, ...] = ()) -> Quality:
    return Quality(Asset(f"https://example.org/{name}.tif", (1,)), values, bits)


SCL = (3, 8, 9, 10)


@pytest.mark.parametrize(
    ("collection", "assets", "properties", "expected", "stretch", "clouds"),
    [
        ("naip", ["image", "thumbnail"], {}, [("image", (1, 2, 3))], None, None),
        ("oam", ["visual"], {}, [("visual", (1, 2, 3))], None, None),
        ("10300100E5EB5C00", ["pan_analytic", "visual"], {"quadkey": "1", "ard_metadata_version": "1"}, [("visual", (1, 2, 3))], None, None),
        ("landsat-c2-l2", ["red", "green", "blue", "qa_pixel"], {}, ["red", "green", "blue"], (7273, 18182), quality("qa_pixel", bits=(1, 2, 3, 4))),
        ("sentinel-2-l2a", ["B04", "B03", "B02", "visual", "SCL"], {}, [("visual", (1, 2, 3))], None, quality("SCL", SCL)),
        ("sentinel-2-l2a", ["B04", "B03", "B02"], {"s2:processing_baseline": "05.11"}, ["B04", "B03", "B02"], (1000, 4000), None),
        ("sentinel-2-l2a", ["B04", "B03", "B02"], {"s2:processing_baseline": "02.12"}, ["B04", "B03", "B02"], (0, 3000), None),
        ("sentinel-2-l2a", ["red", "green", "blue", "scl"], {"s2:processing_baseline": "05.11"}, ["red", "green", "blue"], (0, 3000), quality("scl", SCL)),
        ("sentinel-2-c1-l2a", ["red", "green", "blue", "scl"], {}, ["red", "green", "blue"], (1000, 4000), quality("scl", SCL)),
    ],
)  # fmt: skip
def test_shipped_profiles_know_their_collections(
    collection: str, assets: list[str], properties: dict[str, Any], expected: list[Any], stretch: Any, clouds: Quality | None
) -> None:
    shown = show(item(names(*assets), **properties), collection, {}, load_profiles())
    wanted = [(name, (1,)) if isinstance(name, str) else name for name in expected]
    assert [(asset.href, asset.bands) for asset in shown.assets] == [(f"https://example.org/{name}.tif", bands) for name, bands in wanted]
    assert shown.stretch == stretch
    assert shown.quality == clouds
    assert shown.guess == ""


def test_real_items_of_the_planetary_computer_and_landsat(shared: Path) -> None:
    folder = shared / "stac" / "odc-stac"
    sentinel = pystac.Item.from_file(str(folder / "S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json"))
    shown = show(sentinel, "sentinel-2-l2a", {}, load_profiles())
    assert shown.names == ("visual",)
    assert shown.quality is not None
    assert shown.quality.asset.href == sentinel.assets["SCL"].href
    assert show(sentinel, "sentinel-2-l2a", {}, load_profiles(), assets=("B04", "B03", "B02")).stretch == (0.0, 3000.0)
    landsat = pystac.Item.from_dict(json.loads((folder / "LC08_L2SP_028030_20200114_20200824_02_T1_SR.json").read_text()) | {"links": []})
    shown = show(landsat, "landsat-c2l2-sr", {}, load_profiles())
    assert shown.names == ("red", "green", "blue")
    assert shown.quality is not None
    assert shown.quality.bits == (1, 2, 3, 4)
    assert {asset.nodata for asset in shown.assets} == {0.0}


OWN = """
collections = ["planet-*"]
[[colours]]
assets = ["analytic"]
bands = [3, 2, 1]
stretch = [0, 2500]
nodata = 0
[[quality]]
asset = "udm2"
values = [0]
"""


def test_the_users_own_profile_goes_before_the_shipped_ones() -> None:
    shown = show(item(names("analytic", "udm2", "red")), "planet-scope", {}, load_profiles(OWN))
    assert [(asset.bands, asset.nodata) for asset in shown.assets] == [((3, 2, 1), 0.0)]
    assert (shown.stretch, shown.quality) == ((0.0, 2500.0), quality("udm2", (0,)))
    naip = OWN.replace("planet-*", "naip")
    assert show(item(names("image", "analytic")), "naip", {}, load_profiles(naip)).names == ("analytic",)
    assert show(item(names("image")), "naip", {}, load_profiles(naip)).guess  # its profile does not fit the item: nobody else's word is taken


def test_the_caller_goes_before_every_profile() -> None:
    landsat = item(names("red", "green", "blue", "nir08", "qa_pixel"))
    false_colour = show(landsat, "landsat-c2-l2", {}, load_profiles(), assets=("nir08", "red", "green"))
    assert (false_colour.names, false_colour.stretch) == (("nir08", "red", "green"), (7273.0, 18182.0))
    assert show(landsat, "landsat-c2-l2", {}, load_profiles(), stretch=(1.0, 2.0)).stretch == (1.0, 2.0)
    assert show(item(names("image")), "naip", {}, load_profiles(), bands=(4, 1, 2)).assets[0].bands == (4, 1, 2)


@pytest.mark.parametrize(
    ("assets", "defaults", "guess"),
    [
        ({"visual": {"eo:bands": PLAIN}}, {}, ""),
        ({"visual": {"bands": PLAIN}}, {}, ""),
        ({"visual": {}}, {"visual": {"eo:bands": PLAIN}}, ""),
        ({"pan": {"bands": [{"name": "pan"}]}}, {}, ""),
        ({"visual": {}}, {}, "the first 3 bands of asset visual are taken for red, green, blue"),
        ({"visual": {"raster:bands": [{"data_type": "uint8"}] * 4}}, {}, "the first 3 bands of asset visual are taken for red, green, blue"),
        ({"cog": {}, "notes": {"type": "text/plain"}}, {}, "asset cog is taken, its only raster; the first 3 bands of asset cog are taken"),
        ({"visual": {"eo:bands": PLAIN}}, {"visual": {"raster:bands": [{"statistics": {"minimum": 2, "maximum": 9}}]}}, "values from 2 to 9"),
    ],
)
def test_without_a_profile_the_catalog_decides_and_a_guess_is_named(assets: dict[str, Any], defaults: dict[str, Any], guess: str) -> None:
    said = show(item(assets), "aerial", defaults, load_profiles()).guess
    assert said.startswith(guess)
    assert bool(said) == bool(guess)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("collections = [", "profile own is not one"),
        ('collections = ["a"]', "needs collections .* and colours"),
        ('[[colours]]\nassets = ["a"]', "needs collections"),
        ('collections = ["a"]\n[[colours]]\nassets = ["a", "b"]', "one asset, or three"),
        ('collections = ["a"]\n[[colours]]\nasset = ["a"]', "unknown key 'asset'"),
        ('collections = ["a"]\n[[colours]]\nassets = ["a"]\nstretch = [3, 1]', "lower and a higher"),
        ('collections = ["a"]\n[[colours]]\nassets = ["a"]\n[[quality]]\nasset = "q"', "needs values, or bits"),
        ('collections = ["a"]\n[[colours]]\nassets = ["a"]\n[[quality]]\nvalues = [1]', "asset is missing"),
    ],
)
def test_what_is_no_profile_is_refused_by_name(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_profile(text, "own")
