"""Pictures are judged by Pillow and rasterio; masks on the ground by drawing them back, and their areas by an equal-area projection; the job by
what the bundled model says when it is asked directly. How good its answers are is not judged here."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import shapely
from affine import Affine
from PIL import Image, ImageColor, ImageOps
from pyproj import Transformer
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.features import rasterize
from scipy.ndimage import binary_erosion, gaussian_filter

from geopixel.conversation import COLUMNS, STRETCH, Conversation, Mark, Picture, Place, Reply, coloured, draw_overlay, masks_on_the_ground, read_picture, store
from geopixel.demo import write_catalog
from geopixel.errors import ReadError
from geopixel.model import Answer, GeoPixel, generation
from geopixel.model.geopixel import SEGMENT_PROMPT
from geopixel.publish import COLOURS

ROOT = Path(__file__).parents[1]
UTM: dict[str, Any] = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)}


def noise(*shape: int, high: int = 256, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def write(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """pixels (bands, height, width)."""
    count, height, width = pixels.shape
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    with rasterio.open(path, "w", driver=driver, width=width, height=height, count=count, dtype=pixels.dtype, **options) as file:
        file.write(pixels)
    return path


def blank(height: int, width: int, place: Place | None) -> Picture:
    return Picture(np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool), place)


def blobs(count: int, height: int, width: int) -> np.ndarray:
    """(count, height, width) bool masks with holes, corners that touch and parts on the edge."""
    fields = np.random.default_rng(1).normal(size=(count, height, width))
    return np.array([gaussian_filter(field, 2) > 0.05 for field in fields])


def reply(masks: np.ndarray, phrases: list[str | None] | None = None) -> Reply:
    names = phrases or [f"thing {index}" for index in range(len(masks))]
    text = " and ".join("[SEG]" if name is None else f"<p> {name} </p> [SEG]" for name in names) + " ."
    marks = [Mark(name, COLOURS[i], mask, 0.5 + i / 8, float(i)) for i, (name, mask) in enumerate(zip(names, masks, strict=True))]
    return Reply("what is there?", text, marks)


# --- reading


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "LA", "RGBA", "CMYK"])
def test_a_plain_picture_is_what_pillow_sees(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(noise(40, 60, 3)).convert(mode)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    if mode == "CMYK":  # GDAL turns these into colours in JPEGs only
        path, image = tmp_path / "picture.jpg", Image.new("CMYK", (60, 40), (0, 80, 160, 40))
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.where(noise(40, 60) > 100, 255, 0).astype(np.uint8)))
    image.save(path)
    expected = np.asarray(image.convert("RGB")).astype(int)
    if mode in ("LA", "RGBA"):
        expected = expected * (np.asarray(image.getchannel("A")) > 0)[..., None]
    picture = read_picture(path)
    assert picture.place is None
    assert picture.rgb.dtype == np.uint8
    np.testing.assert_allclose(picture.rgb, expected, atol=2 if mode == "CMYK" else 0)


@pytest.mark.parametrize("orientation", range(10))
def test_a_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(np.kron(noise(5, 8, 3), np.ones((8, 8, 1), np.uint8)))
    exif = image.getexif()
    exif[0x112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    with Image.open(tmp_path / "photo.jpg") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved)).astype(int)
    np.testing.assert_allclose(read_picture(tmp_path / "photo.jpg").rgb, expected, atol=3)


@pytest.mark.parametrize("kind", ["16-bit PNG", "16-bit nodata", "float NaN", "constant"])
def test_values_that_are_not_8_bit_are_stretched_between_percentiles_of_the_valid_ones(tmp_path: Path, kind: str) -> None:
    pixels = noise(3, 40, 60, high=4000, dtype="float32" if kind == "float NaN" else "uint16") + (7 if kind != "constant" else 0)
    holes = noise(40, 60) < (0 if kind in ("16-bit PNG", "constant") else 80)
    options: dict[str, Any] = {}
    if kind == "16-bit nodata":
        pixels[:, holes], options = 65535, {"nodata": 65535, **UTM}
    if kind == "float NaN":
        pixels[:, holes] = np.nan
    if kind == "constant":
        pixels[:] = 500
    picture = read_picture(write(tmp_path / ("image.png" if kind == "16-bit PNG" else "image.tif"), pixels, **options))
    rgb, valid = picture.rgb, picture.valid
    if kind == "constant":
        assert (rgb == 0).all()
        return
    low, high = np.percentile(pixels[:, ~holes], STRETCH)
    expected = np.clip((np.moveaxis(pixels, 0, -1).astype(float) - low) / (high - low), 0, 1) * 255
    assert np.abs(rgb - expected)[~holes].max() <= 0.5 + 1e-6
    assert (rgb[holes] == 0).all()
    np.testing.assert_array_equal(valid, ~holes)


def test_colours_are_found_by_name_and_a_picture_keeps_its_pixels_and_place(tmp_path: Path) -> None:
    pixels, turned = noise(4, 40, 60), UTM["transform"] @ Affine.rotation(30)
    path = write(tmp_path / "infrared.tif", pixels, crs=UTM["crs"], transform=turned)
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red", "undefined")]
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.rgb, np.moveaxis(pixels[[2, 1, 0]], 0, -1))
    assert picture.place == Place(CRS.from_user_input(UTM["crs"]), turned)


def test_control_points_are_a_place_too(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, 500_000 + column, 5_400_000 - row) for row in (0, 8) for column in (0, 9)]
    picture = read_picture(write(tmp_path / "points.tif", noise(3, 8, 9), gcps=points, crs=UTM["crs"]))
    np.testing.assert_array_equal(picture.rgb, np.moveaxis(noise(3, 8, 9), 0, -1))
    assert picture.place is not None
    np.testing.assert_allclose(picture.place.to_ground(np.array([0.0, 4.5]), np.array([0.0, 2.5])), [[500_000, 500_004.5], [5_400_000, 5_399_997.5]])


def test_control_points_count_where_a_file_has_no_transform_of_its_own(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, column, 87 + column / 1e4, 27 - row / 1e4) for row in (0, 8) for column in (0, 9)]
    file = write(tmp_path / "points.tif", noise(3, 8, 9), gcps=points, crs="EPSG:4326")
    rasterio.shutil.copy(file, tmp_path / "both.vrt", driver="VRT")
    text = (tmp_path / "both.vrt").read_text()
    (tmp_path / "both.vrt").write_text(text.replace("<GCPList", "<SRS>EPSG:4326</SRS><GCPList", 1))
    with rasterio.open(tmp_path / "both.vrt") as both:
        assert both.crs == CRS.from_epsg(4326)
        assert both.transform.is_identity
    place = read_picture(tmp_path / "both.vrt").place
    assert place is not None
    np.testing.assert_allclose(place.to_ground(np.array([0.0]), np.array([0.0])), [[87], [27]])


def test_a_view_beyond_the_edge_of_the_earth_has_no_place(tmp_path: Path) -> None:
    crs = "+proj=ortho +lat_0=0 +lon_0=0 +R=6371000"
    assert read_picture(write(tmp_path / "in.tif", noise(3, 8, 8), crs=crs, transform=Affine(1e5, 0, 0, 0, -1e5, 0))).place is not None
    assert read_picture(write(tmp_path / "out.tif", noise(3, 8, 8), crs=crs, transform=Affine(1e6, 0, 0, 0, -1e6, 0))).place is None


def test_a_place_that_no_longitude_leads_to_is_none(tmp_path: Path) -> None:
    mars = 'GEOGCS["Mars",DATUM["Mars",SPHEROID["Mars",3396190,169.89]],PRIMEM["Reference",0],UNIT["degree",0.0174532925199433]]'
    for name, crs in {"mars": mars, "local": 'LOCAL_CS["x",UNIT["m",1]]', "nowhere": None}.items():
        assert read_picture(write(tmp_path / f"{name}.tif", noise(3, 8, 8), crs=crs, transform=UTM["transform"])).place is None


def test_a_file_name_may_hold_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "a?b=c & d.e#ü.tif", noise(3, 8, 9), **UTM)
    np.testing.assert_array_equal(read_picture(path).rgb, np.moveaxis(noise(3, 8, 9), 0, -1))


# --- masks on the ground


def drawn_back(geometry: shapely.Geometry, place: Place, inverse: Affine, shape: tuple[int, int]) -> np.ndarray:
    """(height, width) bool: the pixels of a picture whose centres are in a geometry of OGC:CRS84."""
    back = Transformer.from_crs("OGC:CRS84", place.crs.to_wkt(), always_xy=True)
    ground = shapely.transform(geometry, back.transform, interleaved=False)
    pixels = shapely.transform(ground, lambda x, y: inverse @ (x, y), interleaved=False)
    return rasterize([pixels], out_shape=shape, transform=Affine.identity()).astype(bool)


@pytest.mark.parametrize("kind", ["metres", "turned", "degrees", "control points"])
def test_masks_drawn_back_are_the_masks(kind: str) -> None:
    crs = CRS.from_user_input("EPSG:4326" if kind == "degrees" else UTM["crs"])
    affine = {"degrees": Affine(1e-5, 0, 15, 0, -1e-5, 48), "turned": UTM["transform"] @ Affine.rotation(25)}.get(kind, UTM["transform"])
    corners = [(row, column) for row in (0, 20, 48) for column in (0, 30, 64)]
    points = tuple(GroundControlPoint(row, column, *(affine @ (column, row))) for row, column in corners)
    place = Place(crs, points if kind == "control points" else affine)
    masks = blobs(3, 48, 64)
    said = reply(np.concatenate([masks, np.zeros((1, 48, 64), bool)]))
    frame = masks_on_the_ground(blank(48, 64, place), said)
    assert frame.crs == "OGC:CRS84"
    assert [*frame.columns] == [*COLUMNS, "geometry"]
    assert frame["phrase"].to_list() == ["thing 0", "thing 1", "thing 2"]
    assert frame["score"].to_list() == [0.5, 0.625, 0.75]
    assert frame["object_score"].to_list() == [0, 1, 2]
    assert set(frame["prompt"]) == {"what is there?"}
    assert frame.geometry.is_valid.all()
    for mask, geometry in zip(masks, frame.geometry, strict=True):
        np.testing.assert_array_equal(drawn_back(geometry, place, ~affine, (48, 64)), mask)


def test_areas_are_those_of_an_equal_area_projection() -> None:
    masks = blobs(2, 48, 64)
    place = Place(CRS.from_epsg(6933), Affine(10, 0, 1_500_000, 0, -10, 5_500_000))
    frame = masks_on_the_ground(blank(48, 64, place), reply(masks))
    np.testing.assert_allclose(frame["area_m2"], masks.sum(axis=(1, 2)) * 100.0, rtol=1e-5)


def test_a_mask_without_a_phrase_lacks_one_on_disk_too(tmp_path: Path) -> None:
    picture = blank(48, 64, Place(CRS.from_epsg(32633), UTM["transform"]))
    _, paths = store(picture, reply(blobs(2, 48, 64), [None, "tree"]), tmp_path, "image", 1)
    frame = gpd.read_parquet(paths[1])
    assert frame["phrase"].isna().to_list() == [True, False]
    assert frame["phrase"][1] == "tree"
    assert frame.crs == "OGC:CRS84"


def test_a_mask_across_the_antimeridian_is_cut_there() -> None:
    place = Place(CRS.from_epsg(32660), Affine(30, 0, 833_000, 0, -30, 1500))
    frame = masks_on_the_ground(blank(40, 50, place), reply(np.ones((1, 40, 50), bool)))
    parts = shapely.get_parts(frame.geometry.to_numpy())
    bounds = shapely.bounds(parts)
    assert len(parts) == 2
    assert (bounds[:, 2] - bounds[:, 0] < 0.02).all()
    assert frame["area_m2"][0] == pytest.approx(2000 * 900, rel=2e-3)  # the scale of UTM so far from its meridian


@pytest.mark.parametrize("west", [179.999, 250.0])
def test_degrees_beyond_180_are_brought_back(west: float) -> None:
    place = Place(CRS.from_epsg(4326), Affine(1e-4, 0, west, 0, -1e-4, 27))
    (geometry,) = masks_on_the_ground(blank(40, 50, place), reply(np.ones((1, 40, 50), bool))).geometry
    assert geometry.is_valid
    assert np.abs(shapely.get_coordinates(geometry)[:, 0]).max() <= 180
    assert geometry.area == pytest.approx(50e-4 * 40e-4)


# --- the overlay and the words


@pytest.mark.parametrize("size", [(48, 64), (30, 1300)])
def test_the_overlay_is_the_picture_but_for_its_masks(size: tuple[int, int]) -> None:
    rgb, masks = noise(*size, 3), blobs(2, *size)
    masks[1] &= ~masks[0]
    overlay = draw_overlay(Picture(rgb, np.ones(size, bool), None), reply(masks))
    drawn = np.asarray(overlay)[: size[0], : size[1]]
    np.testing.assert_array_equal(drawn[~masks.any(axis=0)], rgb[~masks.any(axis=0)])
    for mask, colour in zip(masks, COLOURS, strict=False):
        ink = np.array(ImageColor.getrgb(colour))
        outer = mask & ~binary_erosion(mask, iterations=2 if size[1] > 1000 else 1)
        assert (drawn[outer] == ink).all()
        assert (np.abs(drawn[mask & ~outer] - (rgb[mask & ~outer] + ink) / 2) <= 0.5).all()
        legend = np.asarray(overlay)[size[0] :]
        assert (legend == ink).all(axis=-1).sum() >= 14 * 14


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("It is [SEG] .", "It is \N{BLACK SQUARE}."),
        ("The <p> big tank </p> [SEG] at left, and <p>\n ships </p>[SEG].", "The big tank at left, and ships."),
        ("<p> a road </p> without a mask, <p> water </p> [SEG] [SEG]", "a road without a mask, water \N{BLACK SQUARE}"),
        ("broken <p> start <p> tree </p> [SEG] </p> end", "broken  start tree  end"),
        ("[/red] is no markup", "[/red] is no markup"),
    ],
)
def test_words_have_the_colours_of_their_masks_and_no_markers(text: str, plain: str) -> None:
    masks = np.ones((text.count("[SEG]"), 4, 4), bool)
    shown = coloured(Reply("?", text, reply(masks).marks))
    assert shown.plain.split() == plain.split()
    styles = [str(span.style).split()[-1] for span in shown.spans]
    assert styles == COLOURS[: len(masks)]


def test_files_take_the_next_free_number_and_no_mask_writes_none(tmp_path: Path) -> None:
    picture = blank(8, 8, None)
    assert store(picture, reply(np.zeros((1, 8, 8), bool)), tmp_path / "out", "a.b", 1) == (1, [])
    assert not (tmp_path / "out").exists()
    (tmp_path / "a.b.2.parquet").touch()
    said = reply(np.ones((1, 8, 8), bool))
    assert store(picture, said, tmp_path, "a.b", 2) == (3, [tmp_path / "a.b.3.png"])
    assert store(picture, said, tmp_path, "a.b", 3) == (4, [tmp_path / "a.b.4.png"])


# --- with the bundled model


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    catalog = write_catalog(tmp_path_factory.mktemp("scenes") / "demo", seeds=(1_000_002,), size=512)
    return next(catalog.parent.rglob("visual.tif"))


@pytest.fixture(scope="module")
def asked(scene: Path) -> tuple[str, Answer, float]:
    """A question that the model answers with a mask, the answer, and a threshold that part of what it sees is above."""
    model, picture = GeoPixel.from_pretrained("nano"), read_picture(scene)
    for concept in ("tree", "water", "field", "road", "building"):
        question = SEGMENT_PROMPT.format(concept)
        answer = model.ask([picture.rgb], [question])[0][0]
        if len(answer.masks):
            return question, answer, float(np.quantile(answer.masks[:, picture.valid], 0.7).clip(0.01, 0.99))
    raise AssertionError("nano finds nothing at all")


def ask(monkeypatch: pytest.MonkeyPatch, *words: object, lines: str | None = None) -> int:
    """The job's exit code, run in this process; lines: what is typed."""
    spec = importlib.util.spec_from_file_location("ask", ROOT / "jobs" / "ask.py")
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    monkeypatch.setattr(sys, "argv", ["ask.py", *map(str, words), "--model", "nano"])
    if lines is not None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    try:
        return job.main()
    except SystemExit as stop:
        return int(stop.code or 0)


def test_one_question(
    scene: Path, asked: tuple[str, Answer, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question, answer, threshold = asked
    picture = read_picture(scene)
    masks = (answer.masks >= threshold) & picture.valid
    monkeypatch.chdir(tmp_path)
    assert ask(monkeypatch, scene, question, "--threshold", threshold) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert not re.search(r"\[SEG\]|</?p>|\x1b", said.out)
    assert {path.name for path in tmp_path.iterdir()} == {"visual.1.png", "visual.1.parquet"}
    frame = gpd.read_parquet("visual.1.parquet")
    assert picture.place is not None
    assert isinstance(picture.place.pixels, Affine)
    assert set(frame["prompt"]) == {question}
    assert len(frame) == len(masks)
    np.testing.assert_allclose(frame["score"], answer.scores, rtol=1e-6)
    np.testing.assert_allclose(frame["object_score"], answer.object_scores, rtol=1e-6)
    for mask, geometry in zip(masks, frame.geometry, strict=True):
        np.testing.assert_array_equal(drawn_back(geometry, picture.place, ~picture.place.pixels, mask.shape), mask)
    changed = (np.asarray(Image.open("visual.1.png"))[: len(picture.rgb), : picture.rgb.shape[1]] != picture.rgb).any(axis=-1)
    assert changed.any()
    assert not changed[~masks.any(axis=0)].any()


def test_a_conversation_remembers_and_numbers_its_questions(
    scene: Path, asked: tuple[str, Answer, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question, answer, threshold = asked
    heard: list[list[int]] = []
    original = generation.answer

    def listen(language: Any, prefixes: Any, image_masks: Any, prompts: Any, **limits: Any) -> Any:
        heard.append(prompts[0][0])
        return original(language, prefixes, image_masks, prompts, **limits)

    monkeypatch.setattr(generation, "answer", listen)
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    Path("out/visual.1.parquet").write_text("older")
    assert ask(monkeypatch, scene, "--out", "out", "--threshold", threshold, lines=f"{question}\nand what else?\n\nnever asked\n") == 0
    tokenizer = GeoPixel.from_pretrained("nano").tokenizer
    first, second = heard
    assert question in tokenizer.decode(first)
    assert second[: len(first)] == first
    later = tokenizer.decode(second[len(first) :])
    assert later.startswith(answer.text.split("[SEG]")[0].split("<p>")[0].strip())
    assert "and what else?" in later
    assert Path("out/visual.1.parquet").read_text() == "older"
    assert not Path("out/visual.1.png").exists()
    assert Path("out/visual.2.png").exists()
    assert str(Path("out/visual.2.parquet")) in capsys.readouterr().out


def test_a_conversation_that_outgrows_the_context_keeps_its_history(scene: Path) -> None:
    conversation = Conversation(GeoPixel.from_pretrained("nano"), read_picture(scene), threshold=0.5, max_new_tokens=1)
    conversation.ask("is there water?")
    history = list(conversation.history)
    with pytest.raises(ValueError, match="tokens"):
        conversation.ask("word " * 5000)
    assert conversation.history == history


def test_a_question_that_does_not_fit_costs_no_conversation(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch, scene, "--out", tmp_path, "--max-new-tokens", 1, lines=f"{'word ' * 5000}\nis there water?\n\n") == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"ask: image, prompt and answer must fit .* tokens, got .*\n", said.err)
    assert said.out


@pytest.mark.parametrize("end", ["end of input", "ctrl-c"])
def test_a_conversation_ends_quietly(
    scene: Path, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    if end == "ctrl-c":
        monkeypatch.setattr("builtins.input", interrupted)
    assert ask(monkeypatch, scene, "--out", tmp_path, lines="" if end == "end of input" else None) == 0
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_said(
    scene: Path, asked: tuple[str, Answer, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question, _, threshold = asked
    assert ask(monkeypatch, scene, question, "--out", tmp_path / "none", "--max-new-tokens", 1) == 0
    assert "no mask" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
    Image.fromarray(read_picture(scene).rgb).save(tmp_path / "plain.png")
    assert ask(monkeypatch, tmp_path / "plain.png", question, "--out", tmp_path / "some", "--threshold", threshold) == 0
    assert "no GeoParquet" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "some").iterdir()] == ["plain.1.png"]


UNREADABLE = ("missing", "text", "empty", "folder", "truncated", "three pixels", "nothing valid", "complex")
REFUSALS = (*UNREADABLE, "beyond the context", "threshold", "out", "blank prompt")


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    case: str, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    image, extra, named = Path(f"{case}.png"), ["--out", "written"], f"{case}.png"
    if case == "text":
        image.write_text("not a picture\n" * 9)
    elif case == "empty":
        image.touch()
    elif case == "folder":
        image.mkdir()
    elif case == "truncated":
        Image.fromarray(noise(300, 200, 3)).save(tmp_path / "whole.png")
        image.write_bytes(Path("whole.png").read_bytes()[:20_000])
    elif case == "three pixels":
        Image.fromarray(noise(1, 3, 3)).save(image)
    elif case == "nothing valid":
        write(image.with_suffix(".tif"), np.zeros((3, 9, 9), np.uint8), nodata=0)
        image.with_suffix(".tif").rename(image)
    elif case == "complex":
        write(image.with_suffix(".tif"), np.ones((1, 9, 9), np.complex64))
        image.with_suffix(".tif").rename(image)
    elif case == "beyond the context":
        Image.fromarray(noise(16, 40_000, 3)).save(image)
        named = "tokens"
    elif case == "threshold":
        image, extra, named = scene, [*extra, "--threshold", "1.5"], "1.5"
    elif case == "out":
        Path("file").touch()
        image, extra, named = scene, ["--out", "file"], "file"
    elif case == "blank prompt":
        image, named = scene, "' '"
    assert ask(monkeypatch, image, " " if case == "blank prompt" else "what is there?", *extra) == 2
    said = capfd.readouterr()
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("ask: error: ")
    assert named in said.err
    assert not Path("written").exists()


def test_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with rasterio.open(tmp_path / "sparse.tif", "w", driver="GTiff", width=20_000, height=20_000, count=3, dtype="uint8", sparse_ok=True, tiled=True):
        pass
    with pytest.raises(ValueError, match="20000 x 20000"):
        read_picture(tmp_path / "sparse.tif")


def test_masks_of_a_picture_without_a_place_stay_where_they_are() -> None:
    with pytest.raises(ValueError, match="place"):
        masks_on_the_ground(blank(8, 8, None), reply(np.ones((1, 8, 8), bool)))
    with pytest.raises(ReadError, match="nonesuch"):
        read_picture(Path("nonesuch.png"))
