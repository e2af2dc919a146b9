"""What the mirror still shows as going on, though it has ended: its process was killed before it could say so there."""

from __future__ import annotations

from collections.abc import Set

from fedpgp.tracking import connection
from fedpgp.tracking.run_writer import RUN_TAG
from fedpgp.tracking.sweep_writer import SWEEP_TAG


def left_running(uri: str, ended: Set[str]) -> list[str]:
    """The names of the entries that are RUNNING in the store but not in truth.

    Args:
        ended: what has ended, by the values of `RUN_TAG` and `SWEEP_TAG`.

    Raises:
        FedPGPError: the store cannot be read.
    """
    with connection.mlflow_errors(uri):
        client = connection.connect(uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        running = client.search_runs(experiments, "attributes.status = 'RUNNING'")
        return [
            str(run.info.run_name)
            for run in running
            if {run.data.tags.get(RUN_TAG), run.data.tags.get(SWEEP_TAG)} & ended
        ]
