"""A run of MLflow for a run of ours: found again after a resumption, fed by a thread that keeps what the server cannot take now.

MLflow's import takes seconds and a server may hang, so neither is in the way of a step. What does not belong here: which metrics there are
(`accord.training.tracking` hands them over).
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from accord.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from accord.rundir import RunDirectory, RunFile, write_atomically
from accord.training.tracking import Status

FIELD = "tracking.mlflow_uri"
EXPERIMENT = "accord"
INSTALL = "pip install 'accord[mlflow]'"
_STATE_FILE = "mlflow.json"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_WIRE_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_BATCH_METRICS = 900  # the server takes 1000
_BATCH_PARAMS = 90  # and 100 of these
_PARAM_CHARACTERS = 500
_MOST_STEPS = 100_000
_PAUSE_SECONDS = 10.0
_LAST_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Row:
    step: int
    values: Mapping[str, float]
    at: float


def open_mlflow(run: RunFile, directory: RunDirectory, report: Callable[[str], None]) -> MlflowTracker:
    """The MLflow run of a run: the one that it had before it was resumed, else a new one in the experiment `accord`.

    Raises:
        InvalidArgumentError: the address is not one.
        FailedPreconditionError: MLflow, or what it needs for this kind of store, is not installed.
        UnavailableError: there is no MLflow run yet, and the server does not answer.
    """
    uri = run.spec.tracking.mlflow_uri
    scheme = urlsplit(uri).scheme.split("+")[0]
    if scheme not in _SCHEMES:
        raise InvalidArgumentError(
            f"{without_password(uri)!r} is no address of MLflow: {', '.join(_SCHEMES)} are allowed, for example http://host:5000 or "
            "sqlite:////folder/mlflow.db (its file store is no longer kept by MLflow)",
            field=FIELD,
        )
    client = _client(uri)
    place = directory.path / _STATE_FILE
    if place.exists():
        run_id = str(json.loads(place.read_text())["run_id"])
        return MlflowTracker(client, run_id, without_password(uri), report, resumed=True)
    try:
        run_id = _create(client, run)
    except ImportError as error:
        raise FailedPreconditionError(
            f"{FIELD}: {scheme} needs the package {error.name}: pip install it, or leave the field out", field=FIELD
        ) from error
    except Exception as error:
        raise UnavailableError(f"MLflow at {without_password(uri)} does not answer: {_first_line(error)}", field=FIELD) from error
    write_atomically(place, json.dumps({"run_id": run_id}))
    report(f"MLflow at {without_password(uri)}: run {run_id} of the experiment {EXPERIMENT}")
    return MlflowTracker(client, run_id, without_password(uri), report)


class MlflowTracker:
    """Sends metrics from a thread of its own; what cannot be sent is kept and tried again.

    Args:
        client: an `mlflow.MlflowClient`.
        run_id: of MLflow.
        name: of the server, for messages.
        report: says something to people.
        resumed: the MLflow run has steps already; those are not sent again.
    """

    last_step = -1

    def __init__(self, client: Any, run_id: str, name: str, report: Callable[[str], None], *, resumed: bool = False) -> None:
        self._client = client
        self._run_id = run_id
        self._name = name
        self._report = report
        self._known: int | None = None if resumed else -1
        self._rows: deque[_Row] = deque(maxlen=_MOST_STEPS)
        self._added = self._sent = 0
        self._away = ""
        self._said = False
        self._status: Status | None = None
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def add(self, step: int, values: Mapping[str, float], *, at: float) -> None:
        """Takes the metrics of a step; returns at once."""
        with self._news:
            self._rows.append(_Row(step, dict(values), at))
            self._added += 1
            self._news.notify()

    def close(self, status: Status) -> None:
        """Sends what is left, for a while, and says how the run ended."""
        with self._news:
            self._status = status
            self._news.notify()
        self._thread.join(_LAST_SECONDS)
        lost = self._added - self._sent
        if lost:
            self._report(f"MLflow at {self._name} never got the metrics of {lost} steps ({self._away or 'it is slow'}); events.jsonl has them")

    def _work(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._rows or self._status)
                rows, closing = self._next_rows(), self._status
            if not self._try(partial(self._send, rows)):
                if closing:
                    return
                with self._news:
                    self._news.wait_for(lambda: self._status, timeout=_PAUSE_SECONDS)
                continue
            with self._news:
                for _ in rows:
                    self._rows.popleft()
                self._sent += len(rows)
                over = not self._rows and self._status
            if over:
                self._try(partial(self._client.set_terminated, self._run_id, status=over))
                return

    def _next_rows(self) -> list[_Row]:
        rows: list[_Row] = []
        size = 0
        for row in self._rows:
            size += len(row.values)
            if rows and size > _BATCH_METRICS:
                break
            rows.append(row)
        return rows

    def _try(self, call: Callable[[], object]) -> bool:
        """Whether a call to the server worked; that it did not is said once."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever MLflow raises, the run goes on
            self._away = _first_line(error)
            if not self._said:
                self._said = True
                self._report(f"MLflow at {self._name} does not answer ({self._away}); the run goes on, and metrics are sent when it is back")
            return False
        self._away = ""
        return True

    def _send(self, rows: list[_Row]) -> None:
        if self._known is None:
            self._known = _last_step(self._client, self._run_id)
            self._client.update_run(self._run_id, status="RUNNING")
        fresh = [row for row in rows if row.step > self._known]
        metric = importlib.import_module("mlflow.entities").Metric
        metrics = [metric(name, value, int(row.at * 1000), row.step) for row in fresh for name, value in row.values.items()]
        if metrics:
            self._client.log_batch(self._run_id, metrics=metrics)


def without_password(uri: str) -> str:
    """The address without what a log must not show."""
    parts = urlsplit(uri)
    return uri if parts.password is None else uri.replace(f":{parts.password}@", ":***@")


def _client(uri: str) -> Any:
    for name, value in _WIRE_SETTINGS.items():  # MLflow's own retries take minutes; ours are in the thread
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("mlflow").MlflowClient(tracking_uri=uri)
    except ImportError as error:
        raise FailedPreconditionError(f"{FIELD} is given and MLflow is not installed: {INSTALL}, or leave the field out", field=FIELD) from error
    except Exception as error:
        raise FailedPreconditionError(f"MLflow refuses {without_password(uri)}: {_first_line(error)}", field=FIELD) from error


def _create(client: Any, run: RunFile) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    experiment = client.create_experiment(EXPERIMENT) if found is None else found.experiment_id
    spec = run.spec
    tags = {"accord.run": run.name, "accord.adapter": spec.adapter, "accord.algorithm": spec.algorithm, "accord.spec_digest": spec.digest}
    created = client.create_run(experiment, run_name=run.name.removeprefix("runs/"), tags=tags, start_time=int(time.time() * 1000))
    run_id = str(created.info.run_id)
    entities = importlib.import_module("mlflow.entities")
    params = [entities.Param(name, value[:_PARAM_CHARACTERS]) for name, value in flat(spec.model_dump(mode="json", exclude_none=True)).items()]
    for start in range(0, len(params), _BATCH_PARAMS):
        client.log_batch(run_id, params=params[start : start + _BATCH_PARAMS])
    return run_id


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping by dotted names, values as text; the address of MLflow is no parameter."""
    found: dict[str, str] = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}.")
        elif path != FIELD:
            found[path] = value if isinstance(value, str) else json.dumps(value)
    return {name: value for name, value in found.items() if value}


def _last_step(client: Any, run_id: str) -> int:
    """The last step that an MLflow run has; each of ours has the metric `seconds`, and evaluations theirs."""
    names = [name for name in client.get_run(run_id).data.metrics if name == "seconds" or name.startswith("eval_")]
    return max((each.step for name in names for each in client.get_metric_history(run_id, name)), default=-1)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
