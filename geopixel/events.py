"""What happens in a run, for whoever reads logs by machine: records with the ids of run and tile. Where a run is submitted, distributed/ has Ray write all
records as JSON lines; elsewhere nobody is told, for a person has the display and the table at the end. Knows nothing of formats or handlers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geopixel.types import TileReceipt  # loads much that settings and their refusals do not need

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set in the process that `ray job submit` starts, and nowhere else (JobSupervisor in ray/dashboard/modules/job/job_supervisor.py)."""

LOG = logging.getLogger(__name__)
LOG.addHandler(logging.NullHandler())  # without it, Python prints warnings that nobody handles


def tell(what: str, run: str, **more: Any) -> None:
    """Of a run, by its id."""
    LOG.info(what, extra={"run_id": run, **more})


def tell_failure(run: str, receipt: TileReceipt) -> None:
    """Of a tile that failed. Call it where receipts come in: there every tile comes by once."""
    told = {"run_id": run, "tile_id": receipt.tile_id, "state": receipt.state, "reason": receipt.reason}
    LOG.warning("tile %s failed: %s", receipt.tile_id, receipt.reason, extra=told)
