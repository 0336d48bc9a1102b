"""Workers on other machines: a scheduler of Dask, or jobs of Slurm that Dask submits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import distributed
from dask_jobqueue import SLURMCluster
from distributed.scheduler import KilledWorker

from matattn.errors import ConfigError, MatattnError

_RETRIES = 3  # of a part whose worker was lost
_SLURM = {"nodes": int, "cores": int, "processes": int, "memory": str, "walltime": str,
          "queue": str, "account": str}  # fmt: skip


@contextmanager
def dask(
    address: str, tell: Callable[[str], Any] = print, timeout: str = "20s"
) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Open the workers of a scheduler of Dask, which must see the same files.

    Its links are open unless it was started with TLS: use it in a network that you trust.
    """
    try:
        client = distributed.Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MatattnError(f"--scheduler {address}: cannot be reached: {reason}") from None
    with client:
        yield from _clients(client, tell)


@contextmanager
def slurm(
    text: str, tell: Callable[[str], Any] = print
) -> Iterator[tuple[Executor, Callable[[], int]]]:
    """Open workers in jobs of Slurm, as ``nodes=8,cores=16,memory=32GB,walltime=02:00:00``."""
    nodes, settings = slurm_settings(text)
    with SLURMCluster(**settings) as cluster:
        cluster.scale(jobs=nodes)
        with distributed.Client(cluster, set_as_default=False) as client:
            yield from _clients(client, tell)


def slurm_settings(text: str) -> tuple[int, dict[str, Any]]:
    """Return the number of nodes and the arguments of ``SLURMCluster``; raises ConfigError."""
    settings: dict[str, Any] = {"nodes": 1, "cores": 1, "memory": "4GB"}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if key not in _SLURM or not equals:
            raise ConfigError(f"--slurm {part.strip()!r}: expected {', '.join(_SLURM)}, as nodes=8")
        try:
            settings[key] = _SLURM[key](value)
        except ValueError:
            raise ConfigError(f"--slurm {key}={value}: expected a number") from None
    settings.setdefault("processes", settings["cores"])  # one thread each
    return settings.pop("nodes"), settings


def _clients(
    client: Any, tell: Callable[[str], Any]
) -> Iterator[tuple[Executor, Callable[[], int]]]:
    client.wait_for_workers(1)
    tell(f"dashboard: {client.dashboard_link}")
    try:
        executor = client.get_executor(retries=_RETRIES, pure=False)
        yield executor, lambda: max(sum(client.nthreads().values()), 1)
    except KilledWorker as error:
        raise MatattnError(
            f"workers were lost {_RETRIES + 1} times at one part ({error}); is their memory short? "
            "The same command goes on with the parts that are left"
        ) from None
