"""Work in processes: the same results as here, and nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from matattn import parallel
from matattn.parallel import parallel_map


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(parallel, "cores", lambda: 2)


def square(number):
    return number * number


def process(_):
    return os.getpid()


def fail(number):
    if number == 5:
        raise ValueError("five")
    return number


@pytest.mark.parametrize("worth", [1, 10, 1000])
def test_results_keep_their_order(worth):
    squares = list(parallel_map(square, range(40), "squares", worth_a_process=worth, chunk=3))
    assert squares == [n * n for n in range(40)]


def test_few_items_are_not_worth_a_process():
    assert set(parallel_map(process, range(19), "", worth_a_process=10)) == {os.getpid()}
    assert set(parallel_map(process, range(40), "", worth_a_process=10, most=1)) == {os.getpid()}
    assert os.getpid() not in set(parallel_map(process, range(40), "", worth_a_process=10))


def test_an_error_comes_through():
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="five"):
        list(parallel_map(fail, range(40), ""))
    assert signal.getsignal(signal.SIGTERM) == handler


def test_in_another_thread():
    squares = []
    thread = threading.Thread(target=lambda: squares.extend(parallel_map(square, range(40), "")))
    thread.start()
    thread.join()
    assert squares == [n * n for n in range(40)]


SCRIPT = """
import os, sys, time
from matattn import parallel
parallel.cores = lambda: 2
def wait(number):
    os.write(1, b"%d\\n" % os.getpid())  # whole lines: print writes the number and the end apart
    time.sleep(1)
list(parallel.parallel_map(wait, range(400), "", chunk=1))
"""


def test_sigterm_leaves_no_process_behind(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        workers = [int(running.stdout.readline()) for _ in range(2)]
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 128 + signal.SIGTERM
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def no_semaphores(*_, **__):
    raise OSError(30, "Read-only file system")


def no_processes(*_, **__):
    raise BlockingIOError(11, "Resource temporarily unavailable")


def one_process_only(fork):
    """A system that forks once, and then no more."""
    started = []

    def popen(process):
        if started:
            no_processes()
        started.append(fork(process))
        return started[0]

    return popen


@pytest.fixture(params=["semaphores", "memory for them", "any process", "a second process"])
def bare_system(request, monkeypatch):
    parallel._tell.cache_clear()
    monkeypatch.delitem(sys.modules, "jax", raising=False)  # whose processes are not forked
    if request.param == "semaphores":
        monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", no_semaphores)
    elif request.param == "memory for them":
        monkeypatch.setattr("multiprocessing.context.BaseContext.SimpleQueue", no_semaphores)
    else:
        fork = multiprocessing.context.ForkProcess._Popen
        limit = no_processes if request.param == "any process" else one_process_only(fork)
        monkeypatch.setattr(multiprocessing.context.ForkProcess, "_Popen", staticmethod(limit))


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX, if another test loaded it
def test_without_processes_this_one_does_the_work(bare_system, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        assert set(parallel_map(process, range(40), "")) == {os.getpid()}
    assert signal.getsignal(signal.SIGTERM) == handler
    (told,) = capsys.readouterr().err.splitlines()  # once
    assert told.startswith("no further processes here, so this one does all work: [Errno ")
    assert not multiprocessing.active_children()


KILLED = """
import os, sys, time
from pathlib import Path
from matattn import parallel

def work(number):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.1)

parallel.cores = lambda: 2
list(parallel.parallel_map(work, range(10_000), "", chunk=1))
"""


def test_processes_of_a_killed_one_end(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    while len(workers := list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    for _ in range(100):
        left = [path.name for path in workers if os.path.exists(f"/proc/{path.name}")]
        if not left:
            break
        time.sleep(0.1)
    assert not left
