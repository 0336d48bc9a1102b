"""A training in several processes behaves like one: signals, errors, and what outlives it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from matattn.errors import TrainingError

_LEFT_TO_THE_PARENT = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT")  # a cluster sends them to all


class _Worker(L.Callback):
    """In each process: one thread, since OpenMP's do not survive a fork, and no signals."""

    def on_train_start(self, *_: Any) -> None:
        torch.set_num_threads(1)
        for name in _LEFT_TO_THE_PARENT:
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # also comes when the parent is no more


@contextmanager
def answering_for(trainer: L.Trainer) -> Iterator[None]:
    """The block in which ``trainer`` fits; changes nothing where it does so in this process.

    The processes end with the block, whatever ends it: checkpoints are always whole. SIGTERM to
    this process raises SIGTERMException, and an error in one of the others raises TrainingError.
    """
    launcher = trainer.strategy.launcher
    if launcher is None:
        yield
        return
    trainer.callbacks.append(_Worker())  # type: ignore[attr-defined]
    alone = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # not under submitit
    if alone:
        signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    except ProcessRaisedException as error:
        raise TrainingError(_last_line(str(error))) from error
    except ProcessExitedException as error:
        raise TrainingError(
            f"a process of the training ended by itself ({error}); out of memory? the same command "
            "resumes from the last epoch"
        ) from error
    finally:
        launcher.kill(signal.SIGKILL)
        if alone:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(*_: Any) -> NoReturn:
    raise SIGTERMException


def _last_line(traceback: str) -> str:
    """The message of the error that a traceback ends with, without the name of our own errors."""
    return re.sub(r"^matattn\.errors\.\w+: ", "", traceback.strip().splitlines()[-1])
