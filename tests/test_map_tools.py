"""The files of a run opened by others' tools: geoparquet-io's checks, DuckDB, pyogrio and whatever README.md says under "Use the map"."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture(scope="module")
def spatial() -> Any:
    """A DuckDB connection that knows geometry. Its extension comes as a wheel of the same version: nothing is fetched."""
    duckdb, extensions = pytest.importorskip("duckdb"), pytest.importorskip("duckdb_extensions")
    pytest.importorskip("duckdb_extension_spatial")
    extensions.import_extension("spatial")
    connection = duckdb.connect()
    connection.load_extension("spatial")
    return connection


def test_geoparquet_io_has_nothing_to_say(serial: Path, spatial: Any) -> None:
    pytest.importorskip("geoparquet_io")
    command = [str(Path(sys.executable).with_name("gpio")), "check", "all", str(serial / "features.parquet")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "29 checks passed" in said.stdout
    assert not re.search(r"✗|failed|warning", said.stdout + said.stderr, re.IGNORECASE), said.stdout + said.stderr


def test_duckdb_counts_measures_and_joins(serial: Path, spatial: Any, tmp_path: Path) -> None:
    features = gpd.read_parquet(serial / "features.parquet")
    path = str(serial / "features.parquet")
    measured = "select prompt, count(*), sum(area_m2), sum(st_area_spheroid(st_flipcoordinates(geometry))) from read_parquet(?) group by all"
    told = spatial.execute(measured, [path])
    for prompt, count, area, theirs in told.fetchall():
        ours = features[features["prompt"] == prompt]
        assert count == len(ours)
        assert area == pytest.approx(ours["area_m2"].sum())
        assert theirs == pytest.approx(area, rel=1e-5)
    labels = features.geometry.representative_point()
    gpd.GeoDataFrame({"name": features["id"]}, geometry=labels).to_parquet(tmp_path / "labels.parquet")
    query = "select count(*) from read_parquet(?) as f join read_parquet(?) as l on st_contains(f.geometry, l.geometry) where f.id = l.name"
    assert spatial.execute(query, [path, str(tmp_path / "labels.parquet")]).fetchone() == (len(features),)


def test_pyogrio_takes_the_features_to_other_formats(serial: Path, tmp_path: Path) -> None:
    features = gpd.read_parquet(serial / "features.parquet")
    features.assign(scene_ids=features["scene_ids"].map(",".join)).to_file(tmp_path / "features.gpkg")
    back = gpd.read_file(tmp_path / "features.gpkg")
    assert back["id"].tolist() == features["id"].tolist()
    np.testing.assert_allclose(back["area_m2"], features["area_m2"])
    assert back.to_crs("OGC:CRS84").geometry.geom_equals_exact(features.geometry.reset_index(drop=True), 1e-12).all()


def snippets() -> list[str]:
    """The Python of README's section "Use the map"."""
    section = README.read_text().split("\n## Use the map\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("index", range(3), ids=["geopandas", "duckdb", "xarray"])
def test_readme_tells_the_truth(serial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, index: int) -> None:
    """Every snippet runs as it stands, where runs/demo is a run."""
    code = snippets()[index]
    if "duckdb" in code:
        request.getfixturevalue("spatial")  # skips where it is missing
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(serial)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"README.md, snippet {index}", "exec"), {})
