import copy
import threading
import types

import pytest
import torch
from torch import nn
from torch.func import functional_call

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation import guard, make_meta_copy, measure_context


def call(copied, *inputs, params=None):
    tensors = {**copied.buffers, **(params or copied.params)}
    return functional_call(copied.module, tensors, inputs)


def assert_same_function(module, *inputs, mode="eval"):
    """The meta copy with w* computes what a real copy does."""
    real = copy.deepcopy(module)
    real.eval()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = real(*inputs)
        torch.manual_seed(0)
        got = call(make_meta_copy(module, mode=mode), *inputs)
    for a, b in zip(_flat(got), _flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def _flat(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]


def test_the_copy_has_no_values_of_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    copied = make_meta_copy(net)
    assert all(parameter.is_meta for parameter in copied.module.parameters())
    with pytest.raises((RuntimeError, NotImplementedError)):
        copied.module(torch.ones(1, 3)).sum().item()
    assert_same_function(net, torch.randn(5, 3))


def test_params_are_detached_fp32_clones_and_the_dtype_of_training_stays_on_the_copy():
    net = nn.Linear(3, 2).to(torch.bfloat16)
    copied = make_meta_copy(net)
    assert copied.params["weight"].dtype is torch.float32
    assert not copied.params["weight"].requires_grad
    assert copied.module.weight.dtype is torch.bfloat16
    copied.params["weight"].zero_()
    assert net.weight.abs().sum() > 0
    fp32 = make_meta_copy(nn.Linear(3, 2))
    assert fp32.params["weight"].data_ptr() != net.weight.data_ptr()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def test_tied_weights_stay_tied():
    copied = make_meta_copy(Tied())
    assert list(copied.params) == ["embed.weight"]
    assert copied.module.head.weight is copied.module.embed.weight
    tokens = torch.tensor([0, 3])
    doubled = {"embed.weight": 2 * copied.params["embed.weight"]}
    torch.testing.assert_close(call(copied, tokens, params=doubled), 4 * call(copied, tokens))


def test_frozen_parameters_travel_with_the_buffers():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].bias.requires_grad_(False)
    copied = make_meta_copy(net)
    assert set(copied.params) == {"0.weight", "1.weight", "1.bias"}
    assert set(copied.buffers) == {
        "0.bias",
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
    }
    copied.buffers["1.running_mean"].add_(5)
    assert net[1].running_mean.abs().sum() == 0


def test_what_is_trainable_is_known_under_a_guard_too():
    net = nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    with guard(net, seed=0):
        assert list(make_meta_copy(net).params) == ["weight"]


def test_train_mode_keeps_a_frozen_batchnorm_frozen():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    net.train()
    net[1].eval()
    flags = [module.training for module in make_meta_copy(net, mode="train").module.modules()]
    assert flags == [True, True, False, True]
    assert not any(module.training for module in make_meta_copy(net, mode="eval").module.modules())
    assert net.training


class Awkward(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.lock = threading.Lock()
        self.stream = (i for i in range(3))
        self.history = {"losses": []}

    def forward(self, x):
        out = self.linear(x)
        self.loss = out.sum()
        self.history["losses"].append(self.loss)
        return out


def test_a_stored_loss_and_attributes_that_refuse_to_be_copied_do_not_stop_the_copy():
    net = Awkward()
    net(torch.ones(1, 2))
    copied = make_meta_copy(net)
    assert set(copied.shared) == {"lock", "stream"}
    assert copied.module.lock is net.lock
    assert copied.module.loss.grad_fn is None
    call(copied, torch.ones(1, 2))
    assert len(net.history["losses"]) == 1
    assert next(net.stream) == 0


class Whole:
    def __deepcopy__(self, memo):
        raise AssertionError("a trainer must not be copied")


def test_substitutes_stand_in_for_live_objects():
    net = nn.Linear(2, 2)
    net.my_trainer, view = Whole(), object()
    copied = make_meta_copy(net, substitutes={id(net.my_trainer): view})
    assert copied.module.my_trainer is view
    assert copied.shared == ()


class HookClosure(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.calls = 0
        self.penalty = lambda: self.linear.weight.square().sum()

        def hook(module, inputs, output):
            self.calls += 1

        self.linear.register_forward_hook(hook)
        self.bound = self.helper

    def helper(self):
        return self

    def forward(self, x):
        return self.linear(x).sum() + self.penalty()


def test_functions_that_close_over_the_module_are_rebuilt_to_hold_the_copy():
    net = HookClosure()
    copied = make_meta_copy(net)
    inputs = torch.randn(3, 2)
    zeros = {name: torch.zeros_like(value) for name, value in copied.params.items()}
    assert call(copied, inputs, params=zeros) == 0  # the penalty, too, reads the given weights
    assert net.calls == 0
    assert copied.module.calls == 1
    assert copied.module.bound() is copied.module
    torch.testing.assert_close(call(copied, inputs), net(inputs))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_patched_forward_that_closes_over_the_one_before_runs_the_copy(times):
    """What libraries do to a model that they generate with; some do it twice."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    def patched(before):
        def forward(self, x):
            return before(2 * x)

        return forward

    for _ in range(times):
        net.forward = types.MethodType(patched(net.forward), net)
    held = net.forward
    copied = make_meta_copy(net)
    x = torch.randn(2, 3)
    params = {name: torch.ones_like(value) for name, value in copied.params.items()}
    wanted = functional_call(
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), params, (x * 2**times,)
    )
    torch.testing.assert_close(call(copied, x, params=params), wanted)
    assert net.forward is held


def test_functions_that_close_over_one_another_in_a_circle_are_copied():
    net = nn.Linear(3, 1)

    def first(self, x):
        return second_method(x) if x.sum() > 100 else nn.Linear.forward(self, x)

    def second(self, x):
        return first_method(x)

    first_method, second_method = types.MethodType(first, net), types.MethodType(second, net)
    net.forward = first_method
    copied = make_meta_copy(net)
    params = {name: torch.zeros_like(value) for name, value in copied.params.items()}
    assert not call(copied, torch.randn(2, 3), params=params).any()


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LSTM(3, 4, num_layers=2, dropout=0.5), (5, 2, 3)),
        (nn.GRU(3, 4), (5, 2, 3)),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), (2, 3)),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (2, 3, 4)),
        (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout()), (2, 3)),
    ],
)
def test_the_copy_computes_what_the_module_does(module, shape):
    module.train()
    assert_same_function(module, torch.randn(shape))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_old_norm_hooks_that_deepcopy_refuses_are_copied(kind):
    net = getattr(nn.utils, kind)(nn.Linear(3, 4))
    net(torch.randn(2, 3))
    net.eval()
    copied = make_meta_copy(net)
    inputs = torch.randn(2, 3)
    torch.testing.assert_close(call(copied, inputs), net(inputs))


def test_compiled_modules_become_their_originals():
    inner = nn.Linear(2, 2)
    net = nn.Sequential(torch.compile(inner, backend="eager"), nn.Tanh())
    copied = make_meta_copy(net)
    assert list(copied.params) == [name for name, _ in net.named_parameters()]
    inputs = torch.randn(3, 2)
    torch.testing.assert_close(call(copied, inputs), inner(inputs).tanh())
    whole = make_meta_copy(torch.compile(inner, backend="eager"))
    assert list(whole.params) == ["weight", "bias"]
    assert type(whole.module) is nn.Linear


def test_a_module_without_shapes_yet_is_refused_with_the_way_out():
    with pytest.raises(RefusedError, match=r"'weight' has no shape.*run one batch"):
        make_meta_copy(nn.LazyLinear(3))


def test_sharded_parameters_are_refused():
    class DTensor(nn.Parameter):
        pass

    net = nn.Linear(2, 2)
    net.weight = DTensor(torch.zeros(2, 2))
    with pytest.raises(RefusedError, match=r"'weight' is sharded \(DTensor\)"):
        make_meta_copy(net)


def test_parameters_without_values_are_refused():
    with pytest.raises(RefusedError, match="meta device"):
        make_meta_copy(nn.Linear(2, 2, device="meta"))


def test_a_module_that_refuses_as_a_whole_is_refused_with_its_reason():
    class Never(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    with pytest.raises(RefusedError, match="not me"):
        make_meta_copy(Never(2, 2))


def test_measure_context_carries_the_copy_and_a_generator_of_its_own():
    net = nn.Linear(2, 2)
    context = measure_context(net, step=3, batches=[torch.ones(1, 2)], n_samples=1, seed=7)
    again = measure_context(net, step=3, seed=7)
    assert context.step == 3
    assert set(context.params) == {"weight", "bias"}
    assert torch.equal(
        torch.rand(2, generator=context.generator), torch.rand(2, generator=again.generator)
    )
