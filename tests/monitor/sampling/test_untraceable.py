"""Steps that vmap cannot trace in some evaluations only, and steps that write into weights."""

import logging

import pytest
import torch
from torch import nn

from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.sampling import estimate_llc
from phasewatch.monitor.sampling.engine import InPlaceEngine, LoopEngine, VmapEngine, evaluate
from phasewatch.monitor.sampling.engine_choice import Verdict, Verdicts, _key
from phasewatch.monitor.sampling.memory_budget import Plan
from phasewatch.monitor.sampling.posing import pose

X = torch.linspace(-1, 1, 64).reshape(16, 4)
BATCH = (X, X.sum(dim=1) > 0)


class Sometimes(nn.Module):
    """Looks at a value from a given evaluation on."""

    def __init__(self, first):
        super().__init__()
        self.net = nn.Linear(4, 2)
        self.calls = [0]
        self.first = first

    def loss(self, batch):
        self.calls[0] += 1
        if self.calls[0] >= self.first:
            _ = int(self.net(batch[0][:1]).argmax().item())
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1].long(), reduction="none")


def problem_of(model):
    context = measure_context(
        model, step=0, loss_fn=lambda m, b: m.loss(b), batches=(BATCH,), n_samples=16
    )
    return context, pose(context)


def displaced(problem, chains=3):
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(chains, problem.layout.num_parameters, generator=generator)


def test_the_loop_takes_over_in_the_middle_and_gives_the_same_numbers(caplog):
    model = Sometimes(first=10**6)
    context, problem = problem_of(model)
    verdicts, plan = Verdicts(), Plan("auto", 3)
    verdicts._known[(*_key(problem), plan)] = Verdict("vmap", "for the test", 3)
    engine = run_through(verdicts.engine_for(problem, plan))
    x = displaced(problem)
    expected = evaluate(LoopEngine(problem), problem, x, [0])
    with engine.session():
        assert engine.name == "vmap"
        before = evaluate(engine, problem, x, [0])
        context.model.first = 0
        with caplog.at_level(logging.INFO, "phasewatch"):
            after = evaluate(engine, problem, x, [0])
            again = evaluate(engine, problem, x, [0])
    torch.testing.assert_close(before.grad, expected.grad)
    for found in (after, again):
        torch.testing.assert_close(found.grad, expected.grad)
        torch.testing.assert_close(found.terms, expected.terms)
    assert (engine.name, engine.width) == ("loop", 1)
    (told,) = [record.getMessage() for record in caplog.records]
    assert ".item()" in told
    assert "test_untraceable.py" in told
    assert "argmax().item()" in told
    # The verdict is kept: the next measurement begins with the loop.
    assert run_through(verdicts.engine_for(problem, plan)).name == "loop"


def test_what_the_loop_cannot_evaluate_either_is_raised_and_no_verdict_on_vmap():
    model = Sometimes(first=10**6)
    context, problem = problem_of(model)
    verdicts, plan = Verdicts(), Plan("auto", 3)
    verdicts._known[(*_key(problem), plan)] = Verdict("vmap", "for the test", 3)
    (key,) = verdicts._known
    engine = run_through(verdicts.engine_for(problem, plan))
    context.model.net = None
    with pytest.raises((TypeError, AttributeError, KeyError)):
        evaluate(engine, problem, displaced(problem), [0])
    assert verdicts._known[key].engine == "vmap"


def test_vmap_that_was_demanded_is_refused_with_the_line_it_cannot_trace():
    with pytest.raises(RefusedError, match=r"vmap.*argmax\(\)\.item\(\).*engine='auto'"):
        estimate_llc(
            Sometimes(first=2), [BATCH], lambda m, b: m.loss(b), n_samples=16,
            config=SamplerConfig(engine="vmap", num_draws=16),
        )  # fmt: skip


@pytest.mark.parametrize("first", [6, 90])
def test_a_measurement_goes_on_by_the_loop(first):
    model = Sometimes(first)
    config = SamplerConfig(num_draws=64, max_draws=64)
    estimate = estimate_llc(model, [BATCH], lambda m, b: m.loss(b), n_samples=16, config=config)
    assert estimate.num_draws + estimate.num_burnin == 64
    assert estimate.engine == "loop"


class Bootstrapped(nn.Module):
    """A target network that the step sets to the trained one, after or before it is used."""

    def __init__(self, way):
        super().__init__()
        self.net, self.target = nn.Linear(4, 2), nn.Linear(4, 2)
        self.way = way

    def update(self):
        if self.way == "load":
            self.target.load_state_dict(self.net.state_dict())
        elif self.way == "copy":
            with torch.no_grad():
                for old, new in zip(self.target.parameters(), self.net.parameters(), strict=True):
                    old.mul_(0.5).add_(new, alpha=0.5)
        elif self.way == "data":
            for old, new in zip(self.target.parameters(), self.net.parameters(), strict=True):
                old.data = old.data * 0.5 + new.data * 0.5

    def loss(self, batch):
        x, done = batch
        if self.way == "copy":
            self.update()
        q = self.net(x).max(1)[0]
        with torch.no_grad():
            following = self.target(x).max(1)[0]
            following[done] = 0.0
        if self.way != "copy":
            self.update()
        return (q - 1 - 0.9 * following).square()


def frozen(model):
    model.target.requires_grad_(False)
    return model


@pytest.mark.parametrize("is_frozen", [False, True])
@pytest.mark.parametrize("way", ["none", "load", "copy", "data"])
def test_a_step_that_writes_into_weights_has_the_live_loss_and_gradient(way, is_frozen):
    torch.manual_seed(0)
    model = frozen(Bootstrapped(way)) if is_frozen else Bootstrapped(way)
    context, problem = problem_of(model)
    kept = {name: value.clone() for name, value in context.params.items()}
    x = displaced(problem, 2)
    engines = [LoopEngine(problem), InPlaceEngine(problem), VmapEngine(problem, 1)]
    for row in x:
        live = frozen(Bootstrapped(way)) if is_frozen else Bootstrapped(way)
        live.load_state_dict(model.state_dict())
        with torch.no_grad():
            for name, part in problem.layout.cut(row).items():
                live.get_parameter(name).add_(part)
        loss = live.loss(BATCH).mean()
        parts = torch.autograd.grad(
            loss, [live.get_parameter(n) for n in problem.layout.names], allow_unused=True
        )
        grad = torch.cat(
            [
                (torch.zeros(size) if part is None else part).reshape(-1)
                for part, size in zip(parts, problem.layout.sizes, strict=True)
            ]
        )
        for engine in engines:
            if way == "data" and engine.name == "vmap":
                continue
            for _ in range(2):  # what one evaluation wrote, the next does not see
                with engine.session():
                    found = evaluate(engine, problem, row[None], [0])
                torch.testing.assert_close(found.loss[0], loss.detach())
                torch.testing.assert_close(found.grad[0], grad)
    assert all(torch.equal(context.params[name], kept[name]) for name in kept)


@pytest.mark.parametrize("way", ["load", "copy", "data"])
def test_a_step_that_writes_into_weights_is_measured(way):
    torch.manual_seed(0)
    model = Bootstrapped(way)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = SamplerConfig(num_draws=64, max_draws=64)
    estimate = estimate_llc(model, [BATCH], lambda m, b: m.loss(b), n_samples=16, config=config)
    assert estimate.num_draws + estimate.num_burnin == 64
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_a_loss_that_fails_on_the_probe_is_refused_with_the_users_line():
    def loss(model, batch):
        return model.net(batch[0]) @ batch[1]  # of the wrong shape

    with pytest.raises(RefusedError, match=r"test_untraceable\.py, line \d+, in loss: return mod"):
        estimate_llc(Sometimes(10**6), [BATCH], loss, n_samples=16)
