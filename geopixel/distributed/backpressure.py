"""How far the source of tiles may run ahead of those who read them. Ray Data bounds what waits by its bytes; rows that name tiles have hardly any, and so
the driver would begin all runs of a country at once, and hold a reference for every few tiles of them. Knows Ray Data's operators; no tiles."""

from __future__ import annotations

from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import ENABLED_BACKPRESSURE_POLICIES, ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer

BLOCKS_AHEAD = 128
"""That may wait before the source goes on: the pieces of two runs, which are planned in less time than the model takes for them. The driver keeps about
12 kB for each."""


class SourceAhead(BackpressurePolicy):
    """The source rests while more blocks wait behind it than BLOCKS_AHEAD, and than twice the tasks that take them."""

    def can_add_input(self, op: PhysicalOperator) -> bool:
        if not op.output_dependencies or not any(isinstance(before, InputDataBuffer) for before in op.input_dependencies):
            return True
        (after,) = op.output_dependencies
        return self._topology[after].total_enqueued_input_blocks() < max(BLOCKS_AHEAD, 2 * after.num_active_tasks())


def keep_source_near(context: DataContext) -> None:
    """Adds SourceAhead to Ray Data's own policies, for all that is executed with this context."""
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, [*ENABLED_BACKPRESSURE_POLICIES, SourceAhead])
