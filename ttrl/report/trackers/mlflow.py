"""MLflow."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ttrl.report.trackers.tracker import COLUMNS, SampledAnswer, Tracked

LONGEST_PARAM = 500
"""Characters of a parameter's value that every store of MLflow takes."""
PARAMS_AT_ONCE = 100


class MlflowTracker:
    """A run of MLflow, in the store that ``MLFLOW_TRACKING_URI`` names."""

    def __init__(self, tracked: Tracked) -> None:
        """Start the run, or go on with it; the system's load is watched by MLflow itself."""
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.client = MlflowClient()
        if tracked.id is None:
            found = self.client.get_experiment_by_name(tracked.project)
            experiment = found and found.experiment_id
            experiment = experiment or self.client.create_experiment(tracked.project)
            self.id = self.client.create_run(experiment, run_name=tracked.name).info.run_id
            params = [Param(n, str(v)[:LONGEST_PARAM]) for n, v in _flat(tracked.settings)]
            for start in range(0, len(params), PARAMS_AT_ONCE):
                self.client.log_batch(self.id, params=params[start : start + PARAMS_AT_ONCE])
            self.client.log_text(self.id, tracked.toml, "config.toml")
        else:
            self.id = self.client.get_run(tracked.id).info.run_id
            self.client.update_run(self.id, status="RUNNING")
        self.monitor = SystemMetricsMonitor(self.id, resume_logging=tracked.id is not None)
        self.monitor.start()

    def log(
        self, step: int, metrics: Mapping[str, float], answers: Sequence[SampledAnswer]
    ) -> None:
        """Keep a step's figures; a table is an artifact that MLflow shows."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        found = [Metric(plain(name), value, now, step) for name, value in metrics.items()]
        self.client.log_batch(self.id, metrics=found)
        if answers:
            table = {"columns": COLUMNS, "data": [a.cells() for a in answers]}
            self.client.log_dict(self.id, table, f"answers/step_{step:05}.json")

    def finish(self, *, failed: bool) -> None:
        """End the run, as finished or as failed."""
        self.monitor.finish()
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


def plain(name: str) -> str:
    """Return a metric's name as MLflow takes it.

    Example: ``"eval/train/pass@1"`` -> ``"eval/train/pass_at_1"``.
    """
    return re.sub(r"[^\w\-. :/]", "_", name.replace("@", "_at_"))


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield plain(f"{prefix}{name}"), value
