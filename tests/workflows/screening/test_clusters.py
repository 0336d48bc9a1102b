"""Workers of Dask make the same parts, also when one of them is killed."""

import dataclasses
import os
import signal
import threading

import pyarrow.parquet as pq
import pytest

from matattn.errors import ConfigError, MatattnError
from matattn.workflows.screening import clusters, engine, hits
from matattn.workflows.screening.clusters import slurm_settings


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(finished, tmp_path):
    distributed = pytest.importorskip("distributed")
    plan, told = dataclasses.replace(finished, folder=str(tmp_path / "other")), []
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=None, processes=True
    ) as cluster:
        victim = cluster.workers[0].pid
        threading.Timer(1.0, os.kill, (victim, signal.SIGKILL)).start()
        with plan.claim():
            progress = engine.run(
                plan, lambda: clusters.dask(cluster.scheduler_address, told.append)
            )
    assert progress.made == 8 and told
    for one, two in zip(hits.parts_of(finished), hits.parts_of(plan), strict=True):
        assert pq.read_table(one).equals(pq.read_table(two))


def test_a_scheduler_that_is_not_there_is_told():
    with (
        pytest.raises(MatattnError, match="--scheduler tcp://127.0.0.1:1: cannot be reached"),
        clusters.dask("tcp://127.0.0.1:1", timeout="1s"),
    ):
        pass


def test_jobs_of_slurm_are_described():
    text = "nodes=8,cores=16,memory=32GB,walltime=02:00:00,queue=short"
    assert slurm_settings(text) == (
        8,
        {"cores": 16, "memory": "32GB", "walltime": "02:00:00", "queue": "short", "processes": 16},
    )
    script = clusters.SLURMCluster(**slurm_settings(text)[1]).job_script()
    assert "#SBATCH -p short" in script and "--nworkers 16" in script


@pytest.mark.parametrize("text", ["nodes", "gpus=1", "nodes=many", ""])
def test_what_slurm_is_not_told_is_refused(text):
    with pytest.raises(ConfigError, match="--slurm"):
        slurm_settings(text)
