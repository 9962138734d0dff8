"""Calling the measured copy, and what goes into the messages about it."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.evaluation import (
    at_weights,
    device_of,
    finite,
    listed,
    named_weight,
    to_device,
)


class Counting(nn.Module):
    """Writes into a buffer at each call, and has a frozen weight."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(3, 2, dtype=dtype)
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=dtype), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.scale * self.layer(x)


X = torch.ones(5, 3)


@pytest.fixture
def live():
    torch.manual_seed(0)
    return Counting()


@pytest.fixture
def context(live):
    return measure_context(live, step=1)


def test_the_copy_answers_as_the_live_model_does(live, context):
    with torch.no_grad():
        assert torch.equal(at_weights(context, lambda model: model(X)), live(X))
        assert torch.equal(at_weights(context, nn.Module.__call__, X), live(X))


def test_a_function_may_read_weights_and_take_arguments(live, context):
    found = at_weights(context, lambda model, i, j: model.layer.weight[i, j], 1, 2)
    assert torch.equal(found, live.layer.weight[1, 2])


def test_a_function_that_is_a_module_reads_its_own_weights(live, context):
    class Distance(nn.Module):
        def __init__(self):
            super().__init__()
            self.origin = nn.Parameter(torch.ones(2, 3))

        def forward(self, model):
            return (model.layer.weight - self.origin).norm()

    found = at_weights(context, Distance())
    assert torch.equal(found, (live.layer.weight - 1.0).norm())


def test_other_weights_stand_in_for_some_and_gradients_reach_them(live, context):
    bias = torch.zeros(2, requires_grad=True)
    found = at_weights(context, lambda model: model(X).sum(), params={"layer.bias": bias})
    assert torch.equal(torch.autograd.grad(found, bias)[0], torch.full((2,), 10.0))
    plain = at_weights(context, lambda model: model(X).sum())
    torch.testing.assert_close(plain - found, 10 * live.layer.bias.sum())


def test_what_a_call_writes_into_buffers_is_gone_after_it(live, context):
    for _ in range(2):
        calls = at_weights(context, lambda model: (model(X), model.calls.clone())[1])
        assert float(calls) == 1.0
    assert float(context.buffers["calls"]) == float(live.calls) == 0.0


def test_weights_have_their_training_dtype(context):
    low = measure_context(Counting(torch.bfloat16), step=1)
    assert low.params["layer.weight"].dtype == torch.float32
    seen = at_weights(low, lambda model: (model.layer.weight.dtype, model.scale.dtype))
    assert seen == (torch.bfloat16, torch.bfloat16)


def test_after_an_exception_the_copy_has_no_weights_again(context):
    def broken(model):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        at_weights(context, broken)
    assert context.model.layer.weight.is_meta


Pair = namedtuple("Pair", ["x", "y"])


def test_every_tensor_of_a_nest_is_moved_and_its_form_is_kept():
    x = torch.zeros(2)
    given = Pair([x, "text"], OrderedDict(a=(x, 3), b=None))
    moved = to_device(given, torch.device("meta"))
    assert isinstance(moved, Pair)
    assert moved.x[0].is_meta
    assert moved.y["a"][0].is_meta
    assert (moved.x[1], moved.y["a"][1], moved.y["b"]) == ("text", 3, None)
    assert not given.x[0].is_meta


def test_the_device_is_that_of_the_model(context):
    assert device_of(context) == torch.device("cpu")


def test_a_weight_is_found_by_its_name_whether_trained_or_not(live, context):
    assert torch.equal(named_weight(context, "layer.weight", "x"), live.layer.weight)
    assert float(named_weight(context, "scale", "x")) == 2.0


def test_a_weight_that_is_not_there_is_refused_beside_those_that_are(context):
    with pytest.raises(RefusedError) as caught:
        named_weight(context, "embed.weight", "gini_embedding")
    message = str(caught.value)
    assert message.startswith("gini_embedding: looked for the parameter 'embed.weight'; the model")
    assert all(name in message for name in ("layer.weight", "layer.bias", "scale", "calls"))


def test_long_lists_are_cut_and_empty_ones_said():
    assert listed([]) == "none"
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(14))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more"
    assert listed("abcd", limit=3) == "a, b, c and 1 more"


def test_what_is_not_finite_is_an_error_that_says_what():
    x = torch.tensor([1.0, 2.0])
    assert finite(x, "the loss") is x
    for bad in (float("nan"), float("inf")):
        with pytest.raises(MeasurementError, match="the loss is not finite"):
            finite(torch.tensor([1.0, bad]), "the loss")
