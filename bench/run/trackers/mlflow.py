"""MLflow: the server that MLFLOW_TRACKING_URI names, or files, which `mlflow ui --backend-store-uri FOLDER` shows."""

import os
import time
from contextlib import suppress
from typing import Any

from bench.run.trackers import Run, Tracker, trackers

CELL = "rela_bench.cell"  # the tag that a cell's run is found by
ENDED = {"done": "FINISHED", "interrupted": "KILLED"}


@trackers.register("mlflow")
class MLflow(Tracker):
    """MLflow: an experiment for each grid, on MLFLOW_TRACKING_URI or in files in the results folder."""

    def __init__(self, run: Run) -> None:
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        super().__init__(run)
        self.client = client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or run.folder.absolute().as_uri())
        named = f"name = '{run.grid}'"
        if not client.search_experiments(filter_string=named):
            with suppress(MlflowException):  # another runner was faster
                client.create_experiment(run.grid)
        experiments = sorted(each.experiment_id for each in client.search_experiments(filter_string=named))
        found = client.search_runs(experiments, f"tags.`{CELL}` = '{run.id}'")
        here = found[0] if found else client.create_run(experiments[0], tags={CELL: run.id}, run_name=run.name)
        self.id = here.info.run_id
        client.update_run(self.id, status="RUNNING")
        client.log_batch(self.id, params=[Param(name, str(value)) for name, value in _flat(run.config).items()])
        history = {name: client.get_metric_history(self.id, name) for name in here.data.metrics}
        self.before = {name: max(each.step for each in values) for name, values in history.items()}

    @classmethod
    def load(cls) -> None:
        """Import it, without the reports of usage that it sends, and with the local files that it would refuse."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow.tracking  # noqa: F401

    def last(self) -> dict[str, int]:
        """Return what its store has."""
        return self.before

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send the values."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self.client.log_batch(self.id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, status: str) -> None:
        """Note how the cell ended."""
        self.client.set_terminated(self.id, ENDED.get(status, "FAILED"))


def _flat(config: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Return nested settings by names such as protocol.lr."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{within}{name}.") if isinstance(value, dict) else {within + name: value}
    return flat
