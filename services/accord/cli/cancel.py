"""`accord cancel`."""

from __future__ import annotations

from accord.cli.connect import reach
from accord.cli.following import run_name
from accord.cli.options import DEFAULT_HOME, Home, Json, Timeout, TrainerAddress
from accord.cli.output import print_json, print_line
from accord.cli.watch import RunName, advice_on_unknown_run


def cancel(run: RunName, trainer: TrainerAddress = None, home: Home = DEFAULT_HOME, timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """Asks a run to checkpoint and stop.

    `accord resume` takes it up again. It is no error where the run has ended.

    \b
    Example:
        accord cancel runs/sft-sft-1a2b3c4d5e
    """
    from accord.client.trainer import TrainerClient

    with reach("trainer", home, trainer, timeout) as target, TrainerClient(target) as client, advice_on_unknown_run(home):
        found = client.cancel_run(run_name(run), timeout_seconds=timeout)
    if as_json:
        print_json(found)
    else:
        print_line(f"{found.name} is {found.state}")
