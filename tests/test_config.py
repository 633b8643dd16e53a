"""Laws of the settings: a flag and a TOML key say the same thing, flags win, and whatever is wrong ends in exit 2 with one line that
names the flag and the value."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopixel.config import PLANETARY_COMPUTER, SUBMITTED, MapSettings, load

AREA = ["--aoi", "85.51,27.62,85.53,27.64"]
LEAST = [*AREA, "--prompt", "building"]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SUBMITTED, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What load prints before it exits with 2."""
    with pytest.raises(SystemExit) as stop:
        load(MapSettings, argv)
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("map_region: error: ")
    assert printed.err.count("\n") == 1
    assert "pydantic" not in printed.err
    return printed.err.removeprefix("map_region: error: ").strip()


def test_defaults(tmp_path: Path) -> None:
    settings = load(MapSettings, LEAST)
    assert settings.prompt == ("building",)
    assert (settings.catalog, settings.collection) == (PLANETARY_COMPUTER, "naip")
    assert (settings.model, settings.threshold, settings.min_area, settings.dry_run) == (None, 0.5, {"building": 0.0}, False)
    assert Path(settings.out).parent == tmp_path / "runs"


def test_flags_and_file_say_the_same(tmp_path: Path) -> None:
    flags = load(MapSettings, [
        *AREA, "--prompt", "red car, parked", "--prompt", "123", "--datetime", "2020-01-01", "--max-cloud", "20", "--assets", "visual", "--bands", "3,2,1",
        "--stretch", "-1.5", "3000", "--resolution", "0.5", "--crs", "EPSG:32645", "--model", "nano", "--min-area", "4", "--threshold", "0.25", "--dry-run",
        "--collection", "naip", "--catalog", PLANETARY_COMPUTER, "--out", "here", "--filter", "gsd < 1", "--choose", "best", "--per-cell", "2",
        "--access", "bearer", "--allow-hosts", "*.example.org,file", "--max-items", "7", "--max-vertices", "8", "--max-tiles", "9",
    ])  # fmt: skip
    Path("region.toml").write_text(f"""
        aoi = "85.51,27.62,85.53,27.64"
        prompt = ["red car, parked", "123"]
        datetime = 2020-01-01
        max-cloud = 20
        assets = "visual"
        bands = [3, 2, 1]
        stretch = [-1.5, 3000]
        resolution = 0.5
        crs = "epsg:32645"
        model = "nano"
        min_area = 4
        threshold = 0.25
        dry-run = true
        collection = "naip"
        catalog = "{PLANETARY_COMPUTER}"
        out = "here"
        filter = "gsd < 1"
        choose = "best"
        per-cell = 2
        access = "bearer"
        allow-hosts = ["*.example.org", "file"]
        max-items = 7
        max-vertices = 8
        max_tiles = 9
    """)
    file = load(MapSettings, ["--config", "region.toml"])
    assert file.model_copy(update={"config": None}) == flags
    assert flags.prompt == ("red car, parked", "123")
    assert flags.stretch == (-1.5, 3000.0)
    assert flags.out == str(tmp_path / "here")


def test_outlines_are_of_all_prompts_or_of_one() -> None:
    """A number, a number of a prompt, both in any order, a table; a prompt may have an equals sign in it."""
    prompts = [*AREA, "--prompt", "swimming pool", "--prompt", "a=b"]
    settings = load(MapSettings, [*prompts, "--min-area", "a=b=20", "--min-area", "5", "--simplify", "swimming  pool=0.5", "--orthogonalize", "a=b"])
    assert settings.min_area == {"swimming pool": 5.0, "a=b": 20.0}
    assert settings.simplify == {"swimming pool": 0.5, "a=b": 0.0}
    assert settings.fill_holes == {"swimming pool": 0.0, "a=b": 0.0}
    assert settings.orthogonalize == ("a=b",)
    Path("region.toml").write_text(
        'aoi = "0,0,1,1"\nprompt = ["swimming pool", "a=b"]\nfill-holes = 3\nsimplify = [1, "a=b=2"]\n[min-area]\n"a=b" = 20\n"swimming pool" = 5'
    )
    file = load(MapSettings, ["--config", "region.toml", "--simplify", "swimming pool=0.5", "--orthogonalize", "a=b"])
    assert (file.min_area, file.simplify, file.fill_holes) == (settings.min_area, settings.simplify, {"swimming pool": 3.0, "a=b": 3.0})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--min-area", "large"], "--min-area takes a number, or one of a prompt such as building=20, got 'large'"),
        (["--simplify", "building="], "--simplify takes a number, or one of a prompt such as building=20, got 'building='"),
        (["--fill-holes", "nan"], "--fill-holes must not be negative, got nan"),
        (["--min-area", "buildin=2"], "--min-area 'buildin' is none of the prompts: building; did you mean building?"),
        (["--min-area", "1", "--min-area", "2"], "--min-area is given twice for all prompts"),
        (["--orthogonalize", "road"], "--orthogonalize 'road' is none of the prompts: building"),
    ],
)
def test_outlines_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert refusal(capsys, *LEAST, *words) == said


def test_a_flag_wins_over_the_file() -> None:
    Path("region.toml").write_text('aoi = "0,0,1,1"\nprompt = ["road", "tree"]\nthreshold = 2')
    settings = load(MapSettings, ["--config", "region.toml", "--threshold", "0.3", "--prompt", "building"])
    assert (settings.threshold, settings.prompt, settings.aoi) == (0.3, ("building",), "0,0,1,1")


def test_environment_variables_have_no_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "THRESHOLD", "OUT", "CRS"):
        monkeypatch.setenv(name, "nonsense")
    assert load(MapSettings, LEAST).model is None


@pytest.mark.parametrize("words", [["0", "3000"], ["0,3000"], ["0 3000"]])
def test_stretch_is_two_words_or_one(words: list[str]) -> None:
    assert load(MapSettings, [*LEAST, "--stretch", *words]).stretch == (0.0, 3000.0)


@pytest.mark.parametrize("words", [["1,2,3"], ["1", "--bands", "2,3"], ["1 2 3"]])
def test_lists_may_be_repeated_or_joined(words: list[str]) -> None:
    assert load(MapSettings, [*LEAST, "--bands", *words]).bands == (1, 2, 3)


def test_a_box_may_start_with_a_minus() -> None:
    assert load(MapSettings, ["--aoi", "-96.8,46.85,-96.75,46.9", "--prompt", "road"]).aoi == "-96.8,46.85,-96.75,46.9"


@given(st.lists(st.text(min_size=1).filter(lambda text: not text.startswith("-")), min_size=1, max_size=4))
def test_any_prompt_arrives_as_it_was_typed(prompts: list[str]) -> None:
    tidy = [" ".join(prompt.split()) for prompt in prompts]
    argv = [*AREA, *(word for prompt in prompts for word in ("--prompt", prompt))]
    if "" in tidy or len({prompt.casefold() for prompt in tidy}) < len(tidy):
        with pytest.raises(SystemExit):
            load(MapSettings, argv)
    else:
        assert list(load(MapSettings, argv).prompt) == tidy


@pytest.mark.parametrize(
    "when", ["2020", "2020-06", "2020-06-30", "2020-06-30T10:00:00Z", "2020-06-30T10:00:00.5+05:45", "2018/2020", "../2020", "2020-02-29/.."]
)
def test_datetime_forms(when: str) -> None:
    assert load(MapSettings, [*LEAST, "--datetime", when]).datetime == when


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--prompt", "Building"),
        ("--prompt", ""),
        ("--max-cloud", "100.5"),
        ("--max-cloud", "-1"),
        ("--max-cloud", "few"),
        ("--threshold", "0"),
        ("--threshold", "1"),
        ("--threshold", "nan"),
        ("--min-area", "-0.1"),
        ("--resolution", "0"),
        ("--resolution", "inf"),
        ("--resolution", "1e-300"),
        ("--resolution", "1e12"),
        ("--bands", "1,2"),
        ("--bands", "0"),
        ("--bands", "red"),
        ("--assets", "red,green"),
        ("--assets", "red,red,blue"),
        ("--stretch", "7"),
        ("--stretch", "9,1"),
        ("--crs", "EPSG:999999"),
        ("--datetime", "2020-13"),
        ("--datetime", "2021-02-29"),
        ("--datetime", "yesterday"),
        ("--datetime", "../.."),
        ("--datetime", "2018/2019/2020"),
        ("--catalog", "missing.json"),
        ("--catalog", "ftp://example.com"),
        ("--collection", ""),
        ("--model", ""),
        ("--out", "http://example.com/runs"),
        ("--out", "s3://"),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(capsys: pytest.CaptureFixture[str], flag: str, value: str) -> None:
    message = refusal(capsys, *LEAST, flag, value)
    assert message.startswith(f"{flag} ")
    assert value.casefold().split(",")[0] in message.casefold()


def test_what_is_missing_or_unknown_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--aoi", "0,0,1,1").startswith("--prompt is missing")
    assert refusal(capsys, "--prompt", "road").startswith("--aoi is missing")
    assert "'--promt'; did you mean --prompt?" in refusal(capsys, *LEAST, "--promt", "road")
    assert "'stray'" in refusal(capsys, *LEAST, "stray")
    assert "of a single asset" in refusal(capsys, *LEAST, "--assets", "r,g,b", "--bands", "1")
    both = refusal(capsys, *LEAST, "--threshold", "2", "--max-cloud", "300")
    assert "--threshold" in both
    assert "--max-cloud" in both


def test_a_wrong_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'none.toml' cannot be read" in refusal(capsys, *LEAST, "--config", "none.toml")
    Path("region.toml").write_text("a b")
    assert "'region.toml' is not TOML" in refusal(capsys, *LEAST, "--config", "region.toml")
    Path("region.toml").write_text('max-clod = 3\naoi = "0,0,1,1"')
    assert refusal(capsys, *LEAST, "--config", "region.toml") == "unknown key 'max-clod' in region.toml; did you mean max_cloud?"
    Path("region.toml").write_text("threshold = 2")
    assert refusal(capsys, *LEAST, "--config", "region.toml") == "--threshold must be less than 1, got 2 (in region.toml)"


def test_the_demo_brings_its_own_area(tmp_path: Path) -> None:
    settings = load(MapSettings, ["--catalog", "demo", "--prompt", "building"])
    assert (settings.aoi, settings.collection, settings.out) == (None, None, str(tmp_path / "runs/demo"))


def test_default_out_tells_areas_apart(tmp_path: Path) -> None:
    assert load(MapSettings, ["--aoi", "data/my town.geojson", "--prompt", "Swimming pool"]).out == str(tmp_path / "runs/my town-swimming-pool")
    areas = ["0,0,1,1", "0,0,1,1.5", "POLYGON((0 0,1 1,1 0,0 0))"]
    assert len({load(MapSettings, ["--aoi", area, "--prompt", "road"]).out for area in areas}) == len(areas)


def test_a_file_is_no_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").touch()
    assert refusal(capsys, *LEAST, "--out", "taken") == "--out taken is a file, not a folder"


def test_a_submitted_job_refuses_a_relative_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SUBMITTED, "{}")
    expected = "--out runs/x is relative: a submitted job runs in a temporary copy; give an absolute path or a URL"
    assert refusal(capsys, *LEAST, "--out", "runs/x") == expected
    assert "is relative" in refusal(capsys, *LEAST)
    assert load(MapSettings, [*LEAST, "--out", "/data/x"]).out == "/data/x"
    assert load(MapSettings, [*LEAST, "--out", "s3://bucket/x/"]).out == "s3://bucket/x"
    assert "is relative" in refusal(capsys, *LEAST, "--dry-run")  # it writes plan.parquet there


def test_ray_sets_that_variable() -> None:
    constants = pytest.importorskip("ray._private.runtime_env.constants")
    assert constants.RAY_JOB_CONFIG_JSON_ENV_VAR == SUBMITTED


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load(MapSettings, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name, field in MapSettings.model_fields.items():
        assert f"  --{'no-' if field.default is True else ''}{name.replace('_', '-')}" in text
    for noise in ("{JSON", "null", "None", "{", "[str", "typing"):
        assert noise not in text


def test_settings_load_no_heavy_library() -> None:
    code = "import sys, geopixel.config; print(*({'torch', 'ray', 'geopandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout.strip() == ""
