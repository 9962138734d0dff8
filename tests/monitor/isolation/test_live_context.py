"""Weights that are read as they are: nothing is copied, nothing is written."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import MicroBatches, StepRecord
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.isolation import context as room
from phasewatch.monitor.isolation import live_context, measure_context
from phasewatch.monitor.observables import BUILTIN, create, needs_params_before, reads_live
from phasewatch.monitor.observables.weights.norms import record_step
from phasewatch.monitor.observables.weights.update_ratio import UpdateRatio

ARGUMENTS = {
    "frequency_entropy": {"embed": "0.weight", "hidden": "2.weight", "unembed": "4.weight"},
    "feature_dimensionality": {"weight": "2.weight"},
    "represented_features": {"weight": "2.weight"},
    "polygon": {"weight": "5.weight"},
}
LIVE = (
    *("gradient_norm", "weight_norm", "update_ratio", "squared_weights", "mask_overlap"),
    *("kept_weights", "frequency_entropy", "feature_dimensionality", "represented_features"),
    *("polygon", "singular_values", "effective_rank", "distance_from_init", "distance_moved"),
    *("update_angle", "spectral_norm"),
)


def model_of(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Embedding(7, 4),
        nn.BatchNorm1d(4),
        nn.Linear(4, 10, bias=False),
        nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 150)),
        nn.Linear(10, 7),
        nn.Linear(2, 9, bias=False),
    ).to(dtype)
    model[1].weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return model


def observable_of(name: str):
    observables = {name: {"parameters": ARGUMENTS[name]}} if name in ARGUMENTS else [name]
    return create(name, MonitorConfig.load({"observables": observables}))


def bits(model):
    return {
        name: (tensor._version, tensor.detach().clone(), tensor.data_ptr())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def assert_untouched(model, before, gradients):
    for name, (version, values, place) in bits(model).items():
        assert version == before[name][0], name
        assert torch.equal(values, before[name][1]), name
        assert place == before[name][2], name
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, torch.ones_like(gradient))


def numbers(found):
    return [
        (one.name, one.value, one.stderr, one.status)
        for one in (found if isinstance(found, list) else [found])
    ]


def in_steps(name: str, dtype, make):
    """What three measurements give, a step in between, and the model after them."""
    model, observable = model_of(dtype), observable_of(name)
    if hasattr(observable, "check"):
        observable.check(measure_context(model, step=0))
    results = []
    for step in (1, 2, 3):
        record = record_step(step, model.named_parameters(), keep_params=True)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.mul_(1.0 + 0.125 * step)
        before, gradients = bits(model), [parameter.grad for parameter in model.parameters()]
        context = replace(make(model, step=step), record=record)
        context.generator.manual_seed(step)
        results += numbers(observable.measure(context))
        assert_untouched(model, before, gradients)
    return results


def test_which_observables_read_live_weights_is_known():
    found = []
    for name in BUILTIN:
        try:
            observable = observable_of(name)
        except Exception:  # it needs arguments that make no difference here
            continue
        if name in ("singular_values", "effective_rank"):
            assert not reads_live(observable)  # before the check has looked at the model
            observable.check(measure_context(model_of(), step=0))
        if reads_live(observable):
            found.append(name)
        assert needs_params_before(observable) == (name == "update_ratio")
    assert sorted(found) == sorted(LIVE)


def test_of_an_observable_that_is_not_ours_nothing_is_taken_for_granted():
    class Mine(UpdateRatio):
        pass

    assert not reads_live(Mine())
    assert needs_params_before(Mine())


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_values_are_those_on_a_copy_and_nothing_is_written(name, dtype, monkeypatch):
    on_copies = in_steps(name, dtype, measure_context)
    real, copied = room.make_meta_copy, []

    def live(model, step):
        monkeypatch.setattr(
            room, "make_meta_copy", lambda *a, **k: copied.append(1) or real(*a, **k)
        )
        return live_context(model, step=step)

    assert in_steps(name, dtype, live) == on_copies
    assert copied == []


def test_weights_share_their_memory_with_what_is_alive():
    model = model_of(torch.bfloat16)
    context = live_context(model, step=3, epoch=1, n_samples=5)
    for name, parameter in model.named_parameters():
        found = context.params.get(name, context.buffers.get(name))
        assert found.data_ptr() == parameter.data_ptr()
        assert found.dtype is torch.bfloat16
        assert not found.requires_grad
    assert context.frozen == {"1.weight"}
    assert context.buffers["1.running_mean"].data_ptr() == model[1].running_mean.data_ptr()
    assert (context.step, context.epoch, context.n_samples) == (3, 1, 5)
    assert (context.loss_fn, context.batches) == (None, ())


def test_the_model_is_copied_once_when_somebody_asks(monkeypatch):
    made = []
    real = room.make_meta_copy
    monkeypatch.setattr(room, "make_meta_copy", lambda *a, **k: made.append(1) or real(*a, **k))
    model = model_of()
    context = live_context(model, step=3)
    later = replace(context, learning_rate=0.1, deadline_seconds=1.0)
    assert made == []
    assert later.model is context.model
    assert made == [1]
    assert all(parameter.is_meta for parameter in later.model.parameters())
    assert not later.model.training


def test_what_cannot_be_read_is_refused():
    with pytest.raises(RefusedError, match="meta device"):
        live_context(nn.Linear(2, 2, device="meta"), step=1)


# ---- what is looked at before the step


def test_parameters_are_kept_before_the_step_only_where_asked_for():
    model = model_of()
    kept = record_step(4, model.named_parameters(), keep_params=True)
    record = record_step(4, model.named_parameters(), keep_params=False)
    assert record.params_before == {}
    assert record.gradient_norm == kept.gradient_norm
    assert set(kept.params_before) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(
        kept.params_before[name].data_ptr() != parameter.data_ptr()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    )
    context = replace(live_context(model, step=4), record=record)
    with pytest.raises(MeasurementError, match="were not kept"):
        UpdateRatio().measure(context)


def test_the_record_of_a_step_still_takes_micro_batches():
    record = record_step(4, model_of().named_parameters(), keep_params=False)
    seen = MicroBatches(first_norm=record.gradient_norm, num_samples=(2, 2))
    assert isinstance(replace(record, micro_batches=seen), StepRecord)
