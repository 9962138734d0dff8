"""What is measured in one turn shares its work, comes in steps, and is what it is alone."""

import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.context import MeasureContext, SharedWork
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables import create
from phasewatch.monitor.observables.tokens.components import ComponentLoss
from phasewatch.monitor.sampling.hessian import Hessian
from support.cases.heads import LanguageModel
from support.cases.heads import sequences as words
from support.cases.norms import perceptron, points
from support.cases.tokens import language, sequences

TOKENS = ("icl_score", "dloss_dlog_token", "token_loss", "component_loss", "essential_dynamics")
PATTERNS = ("prefix_matching", "previous_token")
HEADS = (*PATTERNS, "copying_score", "composition", "head_ablation")
CURVATURE = ("hessian_top", "hessian_trace", "hessian_rank", "basin_broadness")
STEPPED = (*CURVATURE, "head_ablation", "component_loss")


def loss_of(model, batch):
    return model.loss(batch)


def next_token(model, batch):
    (tokens,) = batch
    logits = model(tokens)[:, :-1].transpose(1, 2)
    return nn.functional.cross_entropy(logits, tokens[:, 1:])


def context_of(name: str, step: int = 7) -> MeasureContext:
    """A turn in which the observable of that name, and those of its kind, can be measured."""
    torch.manual_seed(1)
    if name in TOKENS:
        model, data, loss = language(0), sequences(0), loss_of
    elif name in HEADS:
        model, data, loss = LanguageModel(0), words(0), next_token
    else:
        model, data, loss = perceptron(0), points(0), loss_of
    columns = list(zip(*(data[i] for i in range(16)), strict=True))
    batches = [[torch.stack(list(column)[at : at + 8]) for column in columns] for at in (0, 8)]
    made = measure_context(model, step=step, loss_fn=loss, batches=batches, n_samples=16, seed=step)
    return replace(made, learning_rate=0.1)


def made(name: str):
    return create(name, MonitorConfig())


def numbers(found):
    listed = found if isinstance(found, list) else [found]
    return [(one.name, one.value, one.stderr, one.status) for one in listed]


class Evaluations:
    """Counts calls of the modules below, by the output of one of them, and Hessian products."""

    def __init__(self, monkeypatch, context):
        self.first = next(m for m in context.model.modules() if not list(m.children()))
        self.calls = self.products = 0
        real = Hessian.__call__

        def product(hessian, vector):
            self.products += 1
            return real(hessian, vector)

        def called(module, *_):
            self.calls += module is self.first

        monkeypatch.setattr(Hessian, "__call__", product)
        self.hook = register_module_forward_hook(called)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.hook.remove()


@pytest.mark.parametrize("names", [TOKENS, HEADS, CURVATURE], ids=["tokens", "heads", "curvature"])
@pytest.mark.parametrize("turned", [False, True])
def test_values_are_those_of_a_measurement_alone(names, turned):
    alone = {name: numbers(made(name).measure(context_of(name))) for name in names}
    turn = context_of(names[0])
    for name in reversed(names) if turned else names:
        assert numbers(made(name).measure(turn)) == alone[name]


def test_losses_of_tokens_take_one_forward_pass_a_turn(monkeypatch):
    turn = context_of("icl_score")
    with Evaluations(monkeypatch, turn) as seen:
        for name in TOKENS:
            made(name).measure(turn)
    assert seen.calls == len(turn.batches)


def test_scores_of_patterns_take_one_forward_pass_a_turn(monkeypatch):
    turn = context_of("prefix_matching")
    with Evaluations(monkeypatch, turn) as seen:
        for name in (*PATTERNS, "copying_score", "composition"):
            made(name).measure(turn)
    assert seen.calls == 1


def test_curvature_takes_fewer_products_together(monkeypatch):
    alone = 0
    for name in CURVATURE[:3]:
        context = context_of(name)
        with monkeypatch.context() as patch, Evaluations(patch, context) as seen:
            made(name).measure(context)
        alone += seen.products
    turn = context_of("hessian_top")
    with Evaluations(monkeypatch, turn) as seen:
        for name in CURVATURE[:3]:
            made(name).measure(turn)
    assert seen.products == 48 + 8 < 0.75 * alone  # the rank's steps, and the trace's probes


def test_checks_share_what_they_try(monkeypatch):
    turn = context_of("hessian_top")
    with Evaluations(monkeypatch, turn) as seen:
        for name in CURVATURE:
            made(name).check(turn)
    assert seen.products == 1
    for names, calls in ((TOKENS, 2), (PATTERNS, 1)):
        turn = context_of(names[0])
        with Evaluations(monkeypatch, turn) as seen:
            for name in names:
                made(name).check(turn)
        assert seen.calls == calls


@pytest.mark.parametrize("names", [TOKENS, PATTERNS, CURVATURE])
def test_work_is_what_is_left_to_do(names):
    turn = context_of(names[0])
    first = made(names[0])
    assert first.work(turn).forwards > 0
    first.measure(turn)
    others = [made(name).work(turn) for name in names[1:]]
    if names is not CURVATURE:
        assert [work.forwards for work in others] == [0.0] * len(others)
    else:  # the trace's probes, the rank's second run, the losses along rays
        assert [work.hessian_products for work in others] == [
            8.0,
            48.0 - min(24, first._usual),
            0.0,
        ]
        assert [work.forwards for work in others[:2]] == [0.0, 0.0]


def test_what_was_made_of_something_else_is_made_anew():
    shared, first, second = SharedWork(), [1], [1]
    assert shared.get("sum", lambda: sum(first), first) == 1
    assert shared.get("sum", lambda: 5, first) == 1
    assert shared.get("sum", lambda: 6, second) == 6
    assert shared.has("sum", first)
    assert not shared.has("sum", [1])


def test_what_failed_is_tried_again():
    shared = SharedWork()
    with pytest.raises(ZeroDivisionError):
        shared.get("ratio", lambda: 1 / 0)
    assert shared.get("ratio", lambda: 2) == 2


# ---- steps


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", STEPPED)
def test_steps_leave_nothing_behind_and_give_what_measuring_gives(name):
    context = context_of(name)
    before = (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled())
    expected = numbers(made(name).measure(context_of(name)))
    for stop in (1, 3):
        left = made(name).measure_in_steps(context_of(name))
        for _ in zip(range(stop), left, strict=False):
            assert (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()) == before
            assert hooks_of(context.model) == 0
        left.close()
    assert (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()) == before
    assert numbers(run_through(made(name).measure_in_steps(context))) == expected


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_is_one_evaluation(name, monkeypatch):
    context = context_of(name)
    whole = len(context.batches)
    made(name).check(context)  # here the two ways to take a product are tried
    context = replace(context, shared=SharedWork(3))
    observable = made(name)
    observable.check(context)
    with Evaluations(monkeypatch, context) as seen:
        steps, calls, products = observable.measure_in_steps(context), 0, 0
        for _ in steps:
            assert seen.products - products <= 1
            # A product by differences would take two passes, and the first loss comes with it.
            assert seen.calls - calls <= 2 * whole
            calls, products = seen.calls, seen.products


def test_measurements_in_steps_may_take_turns():
    names = CURVATURE
    alone = {name: numbers(made(name).measure(context_of(name))) for name in names}
    turn = context_of(names[0])
    running = {name: made(name).measure_in_steps(turn) for name in names}
    found = {}
    while running:
        for name, steps in list(running.items()):
            turn.generator.manual_seed(len(found))  # as it is for each observable that is measured
            try:
                next(steps)
            except StopIteration as done:
                found[name] = numbers(done.value)
                del running[name]
    assert found == alone


@pytest.mark.parametrize("name", CURVATURE)
def test_time_between_steps_is_not_charged(name):
    expected = numbers(made(name).measure(context_of(name)))
    steps = made(name).measure_in_steps(replace(context_of(name), deadline_seconds=30.0))
    next(steps)
    real = time.perf_counter
    try:
        time.perf_counter = lambda: real() + 1000.0  # training went on meanwhile
        found = run_through(steps)
    finally:
        time.perf_counter = real
    assert numbers(found) == expected


def test_slices_of_an_averaged_loss_come_one_a_step(monkeypatch):
    context = context_of("hessian_top")
    with Evaluations(monkeypatch, context) as seen:
        observable = ComponentLoss(by=1, label="class")
        predicted = observable.work(context).forwards * len(context.batches)
        calls = []
        for _ in observable.measure_in_steps(context):
            calls.append(seen.calls)
    assert len(calls) > 2
    assert all(after - before == 1 for before, after in pairwise(calls))
    assert predicted == pytest.approx(2 * len(context.batches))
