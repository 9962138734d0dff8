"""Chains on the shards of a model that several processes hold: the numbers of one process."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.sampling import estimate_llc
from support.workers import run_workers

WORKER = Path(__file__).parents[2] / "support" / "sharded_worker.py"
QUICK = ("gradients:language", "failures", "different_probes")
THOROUGH = (
    "llc:128",
    "gradients:convolution",
    "gradients:recomputed",
    "low_precision",
    "parts",
    "deadline",
)
IN_TRAINING = ("untouched:language", "untouched:convolution", "watched", "noisy", "schemes")
FOUR = ("llc:96", "gradients:language", "gradients:convolution")

pytestmark = pytest.mark.ddp


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return run_workers(WORKER, 2, tmp_path_factory.mktemp("sharded"), QUICK)


@pytest.fixture(scope="module")
def thorough(tmp_path_factory):
    return run_workers(WORKER, 2, tmp_path_factory.mktemp("sharded-thorough"), THOROUGH)


@pytest.fixture(scope="module")
def in_training(tmp_path_factory):
    return run_workers(WORKER, 2, tmp_path_factory.mktemp("sharded-training"), IN_TRAINING)


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    return run_workers(WORKER, 4, tmp_path_factory.mktemp("sharded-four"), FOUR)


def check_gradients(ranks, case, number):
    for rank in ranks:
        assert len(rank[case]) == number
        assert max(rank[case].values()) < 2e-6


def test_loss_and_gradient_are_those_of_one_process(quick):
    check_gradients(quick, "gradients:language", 4)


FAULTS = {
    "loss, first evaluation": ("RefusedError", "rank 1 of 2 failed: ValueError: broken"),
    "loss, in the middle": ("MeasurementError", "rank 1 of 2 failed: ValueError: broken"),
    "loss, on the first rank": ("MeasurementError", "rank 0 of 2 failed: ValueError: broken"),
    "refused": ("RefusedError", "rank 1 of 2 failed: not like this"),
    "inside a layer": ("MeasurementError", "rank 1 of 2 failed: ValueError: in a layer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rank_that_fails_takes_nobody_with_it_and_all_raise_the_same(quick, fault):
    kind, text = FAULTS[fault]
    for rank in quick:
        found, said = rank["failures"]["told"][fault]
        assert found == kind
        assert text in said


def test_what_fails_between_evaluations_is_told_to_the_others(quick):
    first, second = (rank["failures"]["told"] for rank in quick)
    assert second["in the sampler"] == ["MemoryError", "no room"]
    assert first["in the sampler"][0] == "MeasurementError"
    assert "rank 1 of 2 failed: MemoryError: no room" in first["in the sampler"][1]


def test_an_interrupt_stays_one_and_ends_the_measurement_of_the_others(quick):
    first, second = (rank["failures"]["told"] for rank in quick)
    assert second["interrupted"][0] == "KeyboardInterrupt"
    assert first["interrupted"][0] == "MeasurementError"


def test_after_failures_training_is_untouched_and_measuring_works(quick):
    for rank in quick:
        assert rank["failures"]["equal"]
        assert rank["failures"]["told"]["afterwards"] == ["", ""]


def test_ranks_with_different_probes_are_refused(quick):
    for rank in quick:
        kind, text = rank["different_probes"]["error"]
        assert kind == "RefusedError"
        assert "different probe batches" in text


def check_llc(ranks, case):
    alone, shared = (ranks[0][case][key] for key in ("alone", "shared"))
    error = math.hypot(alone["lambda_stderr"], shared["lambda_stderr"])
    assert abs(alone["lambda_hat"] - shared["lambda_hat"]) < 4 * error
    assert abs(shared["lambda_hat"] - 6.0) < 4 * shared["lambda_stderr"] < 4.0
    assert abs(alone["init_loss"] - shared["init_loss"]) < 1e-6
    error = math.hypot(alone["nu_stderr"], shared["nu_stderr"])
    assert abs(alone["nu_hat"] - shared["nu_hat"]) < 4 * error
    assert shared["waic"] == pytest.approx(alone["waic"], rel=0.3)
    assert 0.6 < shared["virial"] < 1.2
    for rank in ranks[1:]:
        assert rank[case]["shared"] == shared


@pytest.mark.slow
def test_the_coefficient_is_that_of_one_process_and_the_same_on_all_ranks(thorough):
    check_llc(thorough, "llc:128")
    assert thorough[0]["llc:128"]["engine"] == "loop"


@pytest.mark.slow
def test_weights_in_every_way_to_shard_and_to_recompute(thorough):
    check_gradients(thorough, "gradients:convolution", 6)
    check_gradients(thorough, "gradients:recomputed", 3)


@pytest.mark.slow
def test_units_compute_in_the_precision_they_train_in(thorough):
    for rank in thorough:
        found = rank["low_precision"]
        assert found["measured"] == pytest.approx(found["live"], rel=2e-3)


@pytest.mark.slow
def test_parts_are_named_as_in_one_process(thorough):
    first, second = (rank["parts"] for rank in thorough)
    assert set(first) == {"names", "module", "mask"}
    assert first == second
    assert all(map(math.isfinite, first.values()))


@pytest.mark.slow
@pytest.mark.parametrize("net", ["language", "convolution"])
def test_training_is_equal_bit_for_bit(in_training, net):
    for rank in in_training:
        found = rank[f"untouched:{net}"]
        assert found["equal"]
        assert found["measured"] == 7
        assert all(map(math.isfinite, found["values"]))


@pytest.mark.slow
def test_a_deadline_is_common_to_all_ranks(thorough):
    first, second = (rank["deadline"] for rank in thorough)
    assert first == second
    assert first["draws"] < 4000


@pytest.mark.slow
def test_a_loss_that_draws_is_averaged(in_training):
    first, second = (rank["noisy"] for rank in in_training)
    assert first == second
    assert first["noise"] == "averaged"


@pytest.mark.slow
def test_every_scheme_minibatches_and_chains_in_place(in_training):
    first, second = (rank["schemes"] for rank in in_training)
    assert first == second
    assert [engine for _, engine, _ in first.values()] == ["loop", "loop", "loop", "inplace"]
    assert all(math.isfinite(value) for value, *_ in first.values())


@pytest.mark.slow
def test_a_plain_loop_is_watched_as_the_docs_show(in_training):
    first, second = (rank["watched"] for rank in in_training)
    assert first["equal"]
    assert second["equal"]
    assert first["told"] == second["told"]
    assert first["steps"] == [1, 2]
    assert first["values"] == first["told"]
    assert first["norms_kept"] == first["norms"] == second["norms"]
    assert "estimate_llc on every process" in first["refused"]["llc"]
    assert first["failures"] == 0


@pytest.mark.slow
def test_four_ranks_and_copies_of_shards(four):
    check_llc(four, "llc:96")
    check_gradients(four, "gradients:language", 5)
    check_gradients(four, "gradients:convolution", 7)


def squares(model, batch):
    return model(batch).square().sum(dim=1)


def test_flat_parameters_are_refused_with_the_way_out():
    class FullyShardedDataParallel(nn.Linear):
        pass

    with pytest.raises(RefusedError, match=r"one flat vector .* shard with fully_shard"):
        estimate_llc(FullyShardedDataParallel(2, 1), [torch.ones(3, 2)], squares, n_samples=3)


def test_parameters_that_deepspeed_spreads_are_refused():
    net = nn.Linear(2, 1)
    net.weight.ds_id = 0
    with pytest.raises(RefusedError, match="DeepSpeed ZeRO-3"):
        estimate_llc(net, [torch.ones(3, 2)], squares, n_samples=3)


def test_other_sharded_tensors_are_refused():
    class DTensor(nn.Parameter):
        pass

    net = nn.Linear(2, 1)
    net.weight = DTensor(torch.zeros(1, 2))
    with pytest.raises(RefusedError, match=r"'weight' is sharded \(DTensor\) and not by"):
        estimate_llc(net, [torch.ones(3, 2)], squares, n_samples=3)
