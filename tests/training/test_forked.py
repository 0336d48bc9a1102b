"""Signals and errors of the processes of one training."""

import os
import signal
from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from matattn.errors import TrainingError
from matattn.training.forked import answering_for


class Launcher(_MultiProcessingLauncher):
    killed = None

    def __init__(self):
        pass

    def kill(self, number):
        self.killed = number


@pytest.fixture
def trainer():
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=Launcher()), callbacks=[])
    yield trainer
    assert trainer.strategy.launcher.killed == signal.SIGKILL  # whatever ended the block
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert len(trainer.callbacks) == 1


def test_processes_end_with_the_block(trainer):
    with answering_for(trainer) as forked:
        assert forked and trainer.strategy.launcher.killed is None


def test_sigterm_ends_the_block(trainer):
    with pytest.raises(SIGTERMException), answering_for(trainer):
        os.kill(os.getpid(), signal.SIGTERM)


def test_an_error_of_a_process_is_told_in_its_last_line(trainer):
    text = "Traceback\n  File\nmatattn.errors.TrainingError: the loss is nan at step 3\n"
    with pytest.raises(TrainingError, match="^the loss is nan at step 3$"), answering_for(trainer):
        raise ProcessRaisedException(text, 1, 4711)


def test_a_process_that_vanished_is_told(trainer):
    error = ProcessExitedException("process 1 was killed", 1, 4711, exit_code=-9)
    with pytest.raises(TrainingError, match="was killed.*often for lack of memory; the same comm"):
        with answering_for(trainer):
            raise error


def test_a_training_in_one_process_is_left_alone():
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), callbacks=[])
    with pytest.raises(ZeroDivisionError), answering_for(trainer) as forked:
        assert not forked and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        raise ZeroDivisionError
    assert not trainer.callbacks
