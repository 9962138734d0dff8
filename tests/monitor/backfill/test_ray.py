"""Tasks on a Ray cluster of two workers on this machine.

Ray is not imported before an executor is made: a cluster would not stay on this machine then.
"""

import importlib.util
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from phasewatch.monitor.backfill.backfill import backfill
from phasewatch.monitor.backfill.checkpoints import find_checkpoints
from phasewatch.monitor.backfill.executors import executor_of
from phasewatch.monitor.backfill.measuring import Plan
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.store.store import Store
from support.backfilled import CONFIG, train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="run by `make ray`"),
]

PLAN = Plan("support.backfilled:factory", CONFIG)


@pytest.fixture(scope="module")
def cluster():
    with executor_of("ray", 2) as executor:
        yield executor
    import ray

    assert not ray.is_initialized()


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    train(folder, 40, lambda step, net: torch.save(net.state_dict(), folder / f"step-{step}.pt"))
    return find_checkpoints([str(folder / "*.pt")])


def filled(where, checkpoints, plan=PLAN, **more):
    with Store(where) as store:
        done = backfill(store, "run", plan, checkpoints, block=2, **more)
        return [
            store.history(done.run_id, name, include_unconverged=True)[:3]
            for name in ("llc", "weight_norm")
        ]


def test_two_workers_give_the_numbers_of_one_process(tmp_path, cluster, saved):
    tasks = filled(tmp_path / "ray.db", saved, executor=cluster)
    serial = filled(tmp_path / "serial.db", saved)
    for ours, theirs in zip(serial, tasks, strict=True):
        assert ours[0].tolist() == [10, 20, 30, 40]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_cluster_is_of_this_machine_alone_and_has_two_workers(cluster):
    import ray

    assert ray.util.get_node_ip_address() == "127.0.0.1"
    assert ray.cluster_resources()["CPU"] == 2
    assert cluster.submit(os.getpid).result() != os.getpid()


def test_an_error_of_a_task_arrives_as_it_was(tmp_path, cluster, saved):
    plan = Plan("support.backfilled:factori", CONFIG)
    with pytest.raises(UnknownNameError, match="did you mean 'factory'"):
        filled(tmp_path / "run.db", saved, plan=plan, executor=cluster)


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    return "came"


def test_what_waits_can_be_cancelled(tmp_path, cluster):
    gate = tmp_path / "gate"
    running = [cluster.submit(wait_for, gate) for _ in range(2)]
    waiting = cluster.submit(wait_for, tmp_path / "never")
    assert waiting.cancel()
    gate.touch()
    assert [future.result() for future in running] == ["came", "came"]
    assert cluster.submit(abs, -3).result() == 3


def test_a_cluster_that_is_there_is_taken_and_left(cluster):
    import ray

    with pytest.raises(ConfigError, match="jobs is 3, and there is a Ray cluster already"):
        executor_of("ray", 3)
    with executor_of("ray") as second:
        assert second.submit(abs, -3).result() == 3
    assert ray.is_initialized()
    with pytest.raises(RuntimeError, match="after shutdown"):
        second.submit(abs, -3)


def test_a_cluster_that_would_listen_to_others_is_not_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    with pytest.raises(ConfigError, match=r"Ray was imported before .* call ray\.init"):
        executor_of("ray")
