"""``matattn train`` and ``train.py``: Hydra's command line, with errors in one line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

import typer

from matattn.cli.terminal import terminal
from matattn.composition import at_home, one_line
from matattn.errors import MatattnError, TrainingError

if TYPE_CHECKING:
    from omegaconf import DictConfig


# Errors of submitit and joblib when one of their processes is gone.
KILLED = ("UncompletedJobError", "TerminatedWorkerError", "BrokenProcessPool")
SOME_KILLED = (
    "a run of the sweep was killed, often for its memory; others may still run: matattn sweep "
    "report tells, and the same command does what is not done"
)


def train(context: typer.Context) -> None:
    """Train a model: matattn train model=crystalformer (matattn train --help lists all choices)."""
    sys.argv = [sys.argv[0], *context.args]
    main()


@terminal()
def main() -> None:
    """Train as the command line says; a user's mistake ends with one line and exit status 2."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from matattn.composition import register

    sys.argv[1:] = map(at_home, sys.argv[1:])
    full_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach the lines below instead of Hydra's printer
    register()

    def stop(error: Exception) -> NoReturn:
        if full_traceback:
            raise error
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)

    @hydra.main(version_base="1.3", config_path="pkg://matattn.conf", config_name="train")
    def job(cfg: DictConfig) -> float:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        from matattn import plugins
        from matattn.kernels.dispatch import BackendError
        from matattn.workflows.run import run
        from matattn.workflows.task import TASKS

        try:
            plugins.check_choices(HydraConfig.get().runtime.choices)
            metrics = run(cfg)
            return TASKS[cfg.task.workflow].objective(metrics)[1]
        except (MatattnError, BackendError, OmegaConfBaseException, OSError) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                print(f"error: {one_line(error)}", file=sys.stderr)
                raise  # the sweep goes on with its other runs, and then ends with this error
            stop(error)
        except KeyboardInterrupt:
            print("interrupted; the same command resumes from the last epoch", file=sys.stderr)
            sys.exit(130)

    try:
        job()
    except BrokenPipeError:  # who reads the help has seen enough
        raise
    except (MatattnError, HydraException, OmegaConfBaseException, OSError) as error:
        stop(error)
    except (RuntimeError, ValueError) as error:
        name = type(error).__name__
        if name in KILLED:
            stop(TrainingError(SOME_KILLED))
        # The kernels' BackendError and Hydra's of data=3 are a user's mistakes; else a defect.
        if name != "BackendError" and not str(error).startswith("Config group override"):
            raise
        stop(error)
