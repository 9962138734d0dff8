"""Two processes that train together: no rank notices, none hangs, and only rank 0 speaks."""

from pathlib import Path

import pytest
import torch

from phasewatch.monitor.store.store import Store
from support.workers import run_workers

WORKER = Path(__file__).parents[2] / "support" / "ddp_worker.py"
QUICK = ("plain", "raises on rank 0")
THOROUGH = (
    "raises late on rank 0",
    "find_unused_parameters",
    "static graph",
)


SHARDED = "sharded parameters"
ACCUMULATED = "accumulated"


def _train(folder, modes):
    """Results of both ranks, by mode."""
    return run_workers(WORKER, 2, folder, modes, seconds=150)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    return folder, _train(folder, QUICK)


@pytest.fixture(scope="module")
def thorough(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp-thorough")
    return folder, _train(folder, (*THOROUGH, SHARDED, ACCUMULATED))


KEEPING = ("checkpoints are kept", "no room for checkpoints", "a disk that fails")


@pytest.fixture(scope="module")
def keeping(tmp_path_factory):
    return _train(tmp_path_factory.mktemp("ddp-keeping"), KEEPING)


SLOW = ("slow by a cadence", "slow within a budget", "slow in one piece")


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp-slow")
    return _train(folder, SLOW)


def _check(ranks, mode):
    for result in ranks:
        assert result[mode]["differences"] == []
        assert result[mode]["steps"] == 6
    first, second = (result[mode] for result in ranks)
    assert first["weights"] == second["weights"]
    assert first["measurements"]["weight_norm"] == 3
    assert first["emitted"] > 0
    assert first["state"] == "finished"
    assert second["emitted"] == 0
    assert sum(second["measurements"].values()) == 0
    return first


@pytest.mark.ddp
def test_two_processes_train_untouched(quick):
    folder, ranks = quick
    first = _check(ranks, "plain")
    assert first["measurements"]["llc"] == 3
    assert sum(first["failures"].values()) == 0
    store = Store(str(folder / "plain" / "store.db"))
    runs = store.runs()
    store.close()
    assert len(runs) == 1


@pytest.mark.ddp
def test_a_measurement_that_raises_on_rank_0_hangs_nobody(quick):
    _, ranks = quick
    first = _check(ranks, "raises on rank 0")
    assert first["failures"]["rude"] >= 1


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("mode", THOROUGH)
def test_every_way_to_train_in_two_processes(mode, thorough):
    _, ranks = thorough
    first = _check(ranks, mode)
    if mode == "raises late on rank 0":
        assert first["failures"]["rude"] >= 1
    else:
        assert first["measurements"]["llc"] == 3


@pytest.mark.ddp
@pytest.mark.slow
def test_sharded_parameters_are_skipped_with_the_reason_and_train_untouched(thorough):
    _, ranks = thorough
    for result in ranks:
        assert result[SHARDED]["differences"] == []
        assert result[SHARDED]["steps"] == 6
    first, second = (result[SHARDED] for result in ranks)
    assert "sharded" in first["skipped"]["llc"]
    assert first["emitted"] > 0  # losses and metrics
    assert second["emitted"] == 0


@pytest.mark.ddp
@pytest.mark.slow
def test_the_gradient_noise_is_seen_before_the_processes_average_and_training_is_untouched(
    thorough,
):
    _, ranks = thorough
    for result in ranks:
        assert result[ACCUMULATED]["differences"] == []
    first, second = (result[ACCUMULATED] for result in ranks)
    assert first["measurements"]["gradient_noise_scale"] >= 1
    assert first["weights"] == second["weights"]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("mode", SLOW)
def test_no_process_waits_longer_for_a_measurement_than_a_tenth_of_the_timeout(mode, slow):
    first, second = (result[mode] for result in slow)
    for result in (first, second):
        assert result["differences"] == []
        assert result["steps"] == 6
        assert result["timeouts"] == [10.0, 10.0]
    assert first["weights"] == second["weights"]
    assert second["evaluations"] == {}
    # In evaluations, of which each takes 25 ms at least: those of a tenth of ten seconds, and the
    # one that is under way when they are over (of two chains, one after the other).
    assert max(first["evaluations"].values()) <= 1.0 / 0.025 + 2
    if mode == "slow by a cadence":  # its λ̂ is spread over the steps between, and goes on
        assert sum(n > 0 for n in first["evaluations"].values()) >= 4
    if mode == "slow in one piece":
        assert "in one piece" in first["skipped"]["stubborn"]
        assert first["measurements"]["weight_norm"] == 3


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("mode", KEEPING)
def test_all_processes_write_a_checkpoint_together_and_none_waits_for_one_that_failed(
    mode, keeping
):
    first, second = (result[mode] for result in keeping)
    for result in (first, second):
        assert result["differences"] == []
        assert result["steps"] == 6
    assert first["weights"] == second["weights"]
    assert first["state"] == "finished"
    if mode != "checkpoints are kept":
        assert first["written"] == 0
        assert first["failures"]["checkpoint"] >= 1
        return
    assert (first["written"], second["written"]) == (6, 0)
    steps = [torch.load(path, weights_only=True)["global_step"] for path in first["kept"]]
    assert steps == [1, 2, 3, 4]
