"""The refined learning coefficient of parts that are found by themselves, and measured in turn."""

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.llc import refined_llc as module
from phasewatch.monitor.observables.llc.parts import Turns, find_parts
from phasewatch.monitor.observables.llc.refined_llc import RefinedLLC
from phasewatch.monitor.sampling.closed_forms import plain_loss
from phasewatch.monitor.sampling.restrictions import names_of
from support.records import make_estimate

N_BETA, GAMMA = 50.0, 1.0
SAMPLER = SamplerConfig(n_beta=N_BETA, localization=GAMMA, num_draws=128, max_draws=0)
QUICK = SAMPLER.model_copy(update={"num_draws": 16})


class Bowl(nn.Module):
    """½ h ‖w‖²."""

    def __init__(self, curvature, size):
        super().__init__()
        self.curvature = curvature
        self.w = nn.Parameter(torch.zeros(size))

    def forward(self):
        return 0.5 * self.curvature * self.w.square().sum()


class Bowls(nn.Module):
    """Their sum, the same for each sample; `unused` has no say in it."""

    def __init__(self, **bowls):
        super().__init__()
        for name, (curvature, size) in bowls.items():
            self.add_module(name, Bowl(curvature, size))

    def forward(self, x):
        return sum(bowl() for bowl in self.children()).expand(len(x))


def truth(curvature, size):
    return size / 2 * N_BETA * curvature / (N_BETA * curvature + GAMMA)


BOWLS = {"soft": (0.1, 1500), "hard": (10.0, 500), "flat": (0.01, 300), "small": (1.0, 200)}


def context_of(model, loss_fn=plain_loss, **changes):
    made = measure_context(
        model, step=7, loss_fn=loss_fn, batches=[torch.zeros(4, 1)], n_samples=8000, seed=3
    )
    return replace(made, **changes)


def values(observations):
    return {one.name: one.value for one in observations}


def test_each_parameter_group_has_the_coefficient_it_has_alone():
    observable = RefinedLLC(config=SAMPLER)
    context = context_of(Bowls(**BOWLS))
    observable.check(context)
    wanted = {f"refined_llc/{name}": truth(*bowl) for name, bowl in BOWLS.items()}
    assert values(observable.measure(context)) == pytest.approx(wanted, rel=0.06)


def test_beyond_max_parts_the_smallest_are_one_part_together():
    observable = RefinedLLC(config=SAMPLER, max_parts=3)
    found = values(observable.measure(context_of(Bowls(**BOWLS))))
    wanted = {f"refined_llc/{name}": truth(*BOWLS[name]) for name in ("soft", "hard")}
    wanted["refined_llc/other"] = truth(*BOWLS["flat"]) + truth(*BOWLS["small"])
    assert found == pytest.approx(wanted, rel=0.06)


def test_a_part_that_the_loss_does_not_react_to_is_left_out_and_told(caplog):
    context = context_of(Bowls(**BOWLS, dead=(0.0, 5)))
    observable = RefinedLLC(config=QUICK)
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        observable.check(context)
    assert "refined_llc/dead is not measured: the gradient of the probe loss is zero" in caplog.text
    assert set(values(observable.measure(context))) == {f"refined_llc/{name}" for name in BOWLS}


def test_where_no_part_can_be_measured_it_refuses():
    context = context_of(Bowls(**BOWLS), loss_fn=None)
    with pytest.raises(RefusedError, match="there is no probe loss"):
        RefinedLLC().check(context)


def test_a_model_of_one_group_is_refused():
    with pytest.raises(RefusedError, match=r"two parameter groups or more; the model has only,"):
        RefinedLLC().check(context_of(Bowls(only=(1.0, 4))))


def transformer(layers):
    return nn.ModuleList(nn.MultiheadAttention(8, 2) for _ in range(layers))


def test_heads_are_found_in_every_attention_layer_but_frozen_ones():
    model = transformer(3)
    model[1].requires_grad_(False)
    found = find_parts(context_of(model), "heads", 4)
    assert list(found) == ["0.head0", "0.head1", "2.head0", "2.head1"]
    assert all(names_of(dict(model.named_parameters()), part) for part in found.values())


@pytest.mark.parametrize(
    ("model", "limit", "message"),
    [
        (nn.Linear(2, 2), 8, "looked for attention heads that are trained; .* no nn.Multihead"),
        (transformer(2), 3, "has 4 attention heads, more than max_parts=3"),
    ],
)
def test_heads_that_are_not_there_or_too_many_are_refused(model, limit, message):
    with pytest.raises(RefusedError, match=message):
        RefinedLLC("heads", max_parts=limit).check(context_of(model))


@pytest.mark.parametrize(
    ("parts", "limit", "message"),
    [
        ({}, 8, "at least one part"),
        ("layers", 8, "parts is 'layers'; give 'modules', 'heads'"),
        ("modules", 1, "max_parts is 1; give at least 2"),
    ],
)
def test_what_it_cannot_be_made_with_is_refused(parts, limit, message):
    with pytest.raises(ConfigError, match=message):
        RefinedLLC(parts, max_parts=limit)


def test_the_sharpness_of_found_parts_survives_a_checkpoint():
    observable = RefinedLLC(config=QUICK)
    observable.measure(context_of(Bowls(**BOWLS)))
    state = observable.state_dict()
    assert state["sharpness"]["hard"] == pytest.approx(10.0, rel=0.05)
    other = RefinedLLC(config=SAMPLER)
    other.load_state_dict(state)
    assert other.state_dict() == state


class Scripted:
    """Stands in for the sampler: each part takes as long as is written."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.calls = []

    def __call__(self, context, config, selections, memories):
        self.calls.append(list(selections))
        yield
        return {
            part: make_estimate(step=context.step, duration_seconds=self.seconds[part])
            for part in selections
        }


def test_what_the_budget_does_not_reach_for_is_measured_in_turn_and_told(monkeypatch, caplog):
    sampler = Scripted({"soft": 1.0, "hard": 2.0, "flat": 1.0, "small": 4.0})
    monkeypatch.setattr(module, "refined_llc_steps", sampler)
    observable = RefinedLLC()
    with caplog.at_level(logging.INFO, logger="phasewatch"):
        observable.measure(context_of(Bowls(**BOWLS)))
        assert caplog.records == []
        for step in (10, 20, 30, 40):
            context = context_of(Bowls(**BOWLS), step=step, deadline_seconds=3.0)
            observable.measure(context)
    assert sampler.calls == [
        ["soft", "hard", "flat", "small"],
        ["soft", "hard"],
        ["flat"],  # with small it would be five seconds
        ["small"],  # alone it takes longer than there is, and still has its turn
        ["soft", "hard"],
    ]
    first, second, *_ = caplog.records
    assert (first.levelno, second.levelno) == (logging.WARNING, logging.INFO)
    assert first.getMessage() == (
        "refined_llc at step 10: the 3 s that the budget leaves reach for soft, hard; left for "
        "next time: flat, small. Raise `overhead` to measure all of them each time"
    )
    assert second.getMessage().endswith("reach for flat; left for next time: small, soft, hard")


def test_a_part_that_was_cut_short_is_not_taken_for_cheap():
    turns = Turns("x", ["a", "b"])
    turns.took({"a": 8.0, "b": 8.0})
    turns.took({"a": 3.0}, deadline_seconds=3.0)  # all it was given
    turns.took({"b": 2.0}, deadline_seconds=3.0)  # it was done before
    assert turns.next(1, 10.0) == ["a", "b"]
    assert turns.next(1, 9.0) == ["a"]


def test_parts_that_run_one_after_another_share_the_time(monkeypatch):
    from phasewatch.monitor.sampling import measure

    deadlines, original = [], measure._measured

    def watched(context, *arguments):
        deadlines.append(context.deadline_seconds)
        return original(context, *arguments)

    monkeypatch.setattr(measure, "_measured", watched)
    observable = RefinedLLC(config=QUICK.model_copy(update={"engine": "inplace"}))
    observable.measure(context_of(Bowls(**BOWLS), deadline_seconds=1000.0))
    # What one leaves, the next may take.
    assert deadlines == pytest.approx([250.0, 1000 / 3, 500.0, 1000.0], rel=0.03)


def test_a_part_goes_on_from_its_own_chains_whatever_is_measured_beside_it(monkeypatch):
    observable = RefinedLLC(config=QUICK.model_copy(update={"num_draws": 64}))
    observable.measure(context_of(Bowls(**BOWLS)))
    before = observable._memories["hard"].displacement
    monkeypatch.setattr(Turns, "next", lambda *_: ["hard"])
    (alone,) = observable.measure(context_of(Bowls(**BOWLS)))
    assert alone.detail.warm
    assert alone.value == pytest.approx(truth(*BOWLS["hard"]), rel=0.1)
    monkeypatch.setattr(Turns, "next", lambda *_: ["hard", "small"])
    assert all(one.detail.warm for one in observable.measure(context_of(Bowls(**BOWLS))))
    assert before.shape[1] == sum(size for _, size in BOWLS.values())
    assert observable._memories["hard"].displacement.shape[1] == 700


def test_the_check_of_parts_looks_for_no_quickest_engine(monkeypatch):
    from phasewatch.monitor.sampling.engine_choice import Verdicts

    monkeypatch.setattr(Verdicts, "engine_for", lambda *_: pytest.fail("an engine was chosen"))
    RefinedLLC(config=QUICK).check(context_of(Bowls(a=(1.0, 2), b=(2.0, 3))))
