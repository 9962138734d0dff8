import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.isolation import guard, is_trainable

NUMPY = np  # the legacy generator is what is guarded
SCRIPT_GENERATOR = torch.Generator().manual_seed(3)


def draws():
    return (torch.rand(2).tolist(), NUMPY.random.rand(2).tolist(), random.random())


def expected_draws(seed=11):
    seed_all(seed)
    return draws()


def seed_all(seed=11):
    torch.manual_seed(seed)
    NUMPY.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_the_global_generators_are_where_they_were_whatever_happened_inside(error):
    wanted = expected_draws()
    seed_all()

    def measure():
        with guard(seed=5):
            torch.manual_seed(77)
            draws()
            if error:
                raise error

    with pytest.raises(error) if error else nullcontext():
        measure()
    assert draws() == wanted


def test_the_generators_inside_depend_on_the_seed_alone():
    with guard(seed=5):
        first = draws()
    draws()
    with guard(seed=5):
        second = draws()
    with guard(seed=6):
        other = draws()
    assert first == second != other


def test_seeding_inside_does_not_queue_a_seed_for_cuda():
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is in use")
    before = len(torch.cuda._queued_calls)
    with guard(seed=5):
        pass
    assert len(torch.cuda._queued_calls) == before


def test_modes_moved_inside_are_put_back():
    torch.set_float32_matmul_precision("highest")

    @guard(seed=0)
    def measure():
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True)
        torch.set_anomaly_enabled(True)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        raise RuntimeError("early")

    with pytest.raises(RuntimeError, match="early"):
        measure()
    assert torch.get_default_dtype() is torch.float32
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()
    assert torch.ones(1).device.type == "cpu"
    assert torch.is_grad_enabled()


def test_inside_gradients_are_on_and_autocast_and_anomaly_detection_are_off():
    torch.set_anomaly_enabled(True)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            with guard(seed=0):
                assert torch.is_grad_enabled()
                assert not torch.is_inference_mode_enabled()
                assert not torch.is_autocast_enabled("cpu")
                assert not torch.is_anomaly_enabled()
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
        assert torch.is_anomaly_enabled()
    finally:
        torch.set_anomaly_enabled(False)


class Stateful(nn.Module):
    class_generator = torch.Generator().manual_seed(1)
    calls = 0

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.generator = torch.Generator().manual_seed(2)
        self.numpy_generator = np.random.default_rng(2)
        self.python_generator = random.Random(2)
        self.count = 0
        self.seen = [1]
        self.table = {"a": [1]}
        self.array = np.zeros(3)
        self.cache = torch.zeros(3)

    def disturb(self):
        type(self).calls += 1
        torch.rand(1, generator=self.class_generator)
        torch.rand(1, generator=self.generator)
        torch.rand(1, generator=SCRIPT_GENERATOR)
        self.numpy_generator.random()
        self.python_generator.random()
        self.count += 1
        self.seen.append(2)
        self.table["a"].append(3)
        self.array[0] = 1.0
        self.cache.data.add_(1)
        self.norm.running_mean += 1
        self.extra = object()
        with torch.no_grad():
            self.linear.weight.mul_(2)
        self.linear.bias.data.add_(1)
        self.train(False)

    def facts(self):
        return (
            self.calls,
            self.class_generator.get_state().tolist(),
            self.generator.get_state().tolist(),
            SCRIPT_GENERATOR.get_state().tolist(),
            self.numpy_generator.bit_generator.state,
            self.python_generator.getstate(),
            self.count,
            list(self.seen),
            {key: list(value) for key, value in self.table.items()},
            self.array.tolist(),
            self.cache.tolist(),
            {key: value.tolist() for key, value in self.state_dict().items()},
            hasattr(self, "extra"),
            self.training,
            self.norm.training,
        )


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_reaches_the_live_module_is_repaired_and_reported(error):
    module = Stateful()
    before = module.facts()
    report = None
    try:
        with guard(module, seed=0) as report:
            module.disturb()
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert module.facts() == before
    text = "\n".join(report.repairs)
    for part in ("Stateful.linear.weight", "seen", "table['a']", "Stateful.generator", "class"):
        assert part in text


def test_a_clean_measurement_reports_no_repair():
    module = Stateful()
    with guard(module, seed=0) as report:
        torch.rand(3)
        module.linear(torch.randn(4, 2))
    assert report.repairs == []


def test_gradients_keep_their_identity_and_the_live_weights_cannot_be_given_any():
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    net(torch.ones(1, 2)).sum().backward()
    gradient, values = net.weight.grad, net.weight.grad.clone()
    with guard(net, seed=0):
        assert net.weight.grad is None
        assert not net(torch.ones(1, 2)).requires_grad
        assert is_trainable(net.weight)
        assert not is_trainable(net.bias)
        with guard(net, seed=1):
            assert is_trainable(net.weight)
        assert is_trainable(net.weight)
        assert not net.weight.requires_grad
    assert net.weight.grad is gradient
    assert torch.equal(net.weight.grad, values)
    assert net.weight.requires_grad
    assert not net.bias.requires_grad


def test_an_interrupt_while_restoring_does_not_leave_it_half_done(monkeypatch):
    from phasewatch.monitor.isolation.torch_switches import Modes

    real, calls = Modes.restore, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Modes, "restore", interrupted)
    net = nn.Linear(2, 1)
    wanted = expected_draws()
    seed_all()
    with pytest.raises(KeyboardInterrupt), guard(net, seed=0):
        draws()
    assert draws() == wanted
    assert net.weight.requires_grad


def test_another_packages_objects_are_left_alone():
    import concurrent.futures

    module = nn.Linear(1, 1)
    module.pool = concurrent.futures.ThreadPoolExecutor(1)
    with guard(module, seed=0) as report:
        module.pool.submit(int).result()
        changed = dict(vars(module.pool))
    assert vars(module.pool) == changed
    assert report.repairs == []
    module.pool.shutdown()
