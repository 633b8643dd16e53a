"""What several tests share: the folder of real data that lies beside a developer's checkout, and how long a property may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Wall time on a shared machine is no property of the code.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real imagery, outlines and goldens (GEOPIXEL_SHARED, or ../shared beside the repository); a test that asks for it skips without."""
    folder = Path(os.environ.get("GEOPIXEL_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set GEOPIXEL_SHARED")
    return folder
