"""Signals and errors of a training in several processes, handled as if it were one."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from matattn.errors import TrainingError

_LEFT_TO_THE_PARENT = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")  # a cluster sends them to all


class _Worker(L.Callback):
    """The set-up of each process: one thread, as OpenMP's do not survive a fork, and no signals."""

    def on_train_start(self, *_: Any) -> None:
        """Leave the signals to the parent."""
        torch.set_num_threads(1)
        for name in _LEFT_TO_THE_PARENT:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # also sent when the parent has died


@contextmanager
def answering_for(trainer: L.Trainer) -> Iterator[bool]:
    """Handle signals and errors for the processes that ``trainer`` forks within this block.

    Yields whether it will fork any. They end with the block, whatever ends it: checkpoints are
    always whole. SIGTERM to this process raises SIGTERMException; an error in one of the others
    raises TrainingError.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        yield False
        return
    trainer.callbacks.append(_Worker())  # type: ignore[attr-defined]
    alone = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # not under submitit
    if alone:
        signal.signal(signal.SIGTERM, _raise)
    try:
        yield True
    except ProcessRaisedException as error:
        raise TrainingError(_last_line(str(error))) from error
    except ProcessExitedException as error:
        raise TrainingError(
            f"a process of the training ended by itself ({error}), often for lack of memory; the "
            "same command resumes from the last epoch"
        ) from error
    finally:
        launcher.kill(signal.SIGKILL)
        if alone:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(*_: Any) -> NoReturn:
    raise SIGTERMException


def _last_line(traceback: str) -> str:
    """Return the last line of a traceback, without the names of matattn's errors."""
    return re.sub(r"^matattn\.errors\.\w+: ", "", traceback.strip().splitlines()[-1])
