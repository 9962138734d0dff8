"""Two engines, one result; and the gradient is the true one for awkward models."""

import copy
import gc
import logging

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.sampling import Memory, SamplerConfig, estimate_llc, measure_llc
from phasewatch.monitor.sampling.engine import LoopEngine, VmapEngine, evaluate
from phasewatch.monitor.sampling.engine_choice import Verdicts
from phasewatch.monitor.sampling.memory_budget import (
    inplace_bytes,
    loop_bytes,
    plan_memory,
    vmap_bytes,
)
from phasewatch.monitor.sampling.posing import pose


def truth(model, batches, loss, point, layout):
    """Gradient at `point` from a real copy of the model that holds it."""
    changed = copy.deepcopy(model).eval()
    values = layout.unflatten(point)
    with torch.no_grad():
        for name, parameter in changed.named_parameters():
            parameter.copy_(values["model." + name])
    terms = torch.cat([loss(changed, batch).reshape(-1) for batch in batches])
    terms.mean().backward()
    return torch.cat([p.grad.reshape(-1) for p in changed.parameters()])


def nearby(problem, num_chains=3):
    """Displacements from w*."""
    generator = torch.Generator().manual_seed(5)
    return 0.1 * torch.randn(num_chains, problem.layout.num_parameters, generator=generator)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.lstm(x[:, None, :].expand(-1, 5, -1))[0][:, -1])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 4)
        self.out = nn.Linear(4, 2)
        self.reentrant = reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = checkpoint(lambda t: torch.tanh(self.second(t)), x, use_reentrant=self.reentrant)
        return self.out(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.layer(self.embed(x[:, None, :].expand(-1, 4, -1)))[:, -1])


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        y = self.out(x)
        return y if y.sum().item() > 0 else 1.0 * y


def normed():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


AWKWARD = {
    "recurrent": Recurrent,
    "tied": Tied,
    "checkpointed": lambda: Checkpointed(False),
    "reentrant": lambda: Checkpointed(True),
    "attention": Attention,
    "branching": Branching,
    "batchnorm_dropout": normed,
}


@pytest.fixture(params=AWKWARD)
def awkward(request):
    torch.manual_seed(0)
    return request.param, AWKWARD[request.param]()


@pytest.mark.parametrize("wanted", ["auto", "inplace"])
def test_the_gradient_is_that_of_a_changed_copy(wanted, awkward, context_of, data, loss, quick):
    _, model = awkward
    batches = list(zip(*(part.split([120, 80]) for part in data), strict=True))
    problem = pose(context_of(model, batches))
    plan = plan_memory(problem, quick(engine=wanted))
    engine = run_through(Verdicts().engine_for(problem, plan))
    x = nearby(problem)
    with engine.session():
        found = evaluate(engine, problem, x, range(2))
    for chain, point in enumerate(problem.center() + x):
        expected = truth(model, batches, loss, point, problem.layout)
        assert torch.allclose(found.grad[chain], expected, rtol=1e-3, atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["tied", "attention", "batchnorm_dropout"])
def test_vmap_equals_the_loop(name, context_of, data):
    torch.manual_seed(0)
    problem = pose(context_of(AWKWARD[name](), [data]))
    points = nearby(problem)
    vmapped = VmapEngine(problem, 3)
    with vmapped.session():
        fast = evaluate(vmapped, problem, points, [0])
    slow = evaluate(LoopEngine(problem), problem, points, [0])
    assert torch.allclose(fast.loss, slow.loss, rtol=1e-5)
    assert torch.allclose(fast.grad, slow.grad, rtol=1e-3, atol=1e-6)
    assert torch.allclose(fast.terms, slow.terms, rtol=1e-4, atol=1e-6)


def test_both_engines_give_the_same_estimate(model, data, loss, quick):
    values = {
        engine: estimate_llc(model, [data], loss, n_samples=200, config=quick(engine=engine))
        for engine in ("vmap", "loop")
    }
    assert values["vmap"].engine == "vmap"
    assert values["loop"].engine == "loop"
    assert values["vmap"].lambda_hat == pytest.approx(values["loop"].lambda_hat, rel=1e-3)


@pytest.mark.parametrize("name", ["branching", "checkpointed", "reentrant"])
def test_what_vmap_cannot_trace_runs_as_a_loop_and_says_why(name, context_of, data, quick, caplog):
    context = context_of(AWKWARD[name](), [data])
    with caplog.at_level(logging.INFO, logger="phasewatch.monitor.sampling"):
        estimate = measure_llc(context, quick())
    assert estimate.engine == "loop"
    assert "vmap" in caplog.text
    with pytest.raises(RefusedError, match="engine='auto'"):
        measure_llc(context, quick(engine="vmap"))


def test_the_verdict_is_remembered_and_told_once(context_of, model, data, quick, caplog):
    memory = Memory()
    with caplog.at_level(logging.INFO, logger="phasewatch.monitor.sampling"):
        for _ in range(3):
            measure_llc(context_of(model, [data]), quick(), memory=memory)
    assert len([r for r in caplog.records if "LLC chains run as" in r.message]) == 1


def test_a_loss_that_writes_into_its_batch_sees_a_fresh_one_each_time(model, data, loss, quick):
    def scribbling(model, batch):
        losses = loss(model, batch)
        batch[1].mul_(1.5)
        return losses

    pristine = tuple(part.clone() for part in data)
    plain = estimate_llc(model, [data], loss, n_samples=200, config=quick(engine="loop"))
    found = estimate_llc(model, [data], scribbling, n_samples=200, config=quick())
    assert found.lambda_hat == pytest.approx(plain.lambda_hat, rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(data, pristine, strict=True))


def test_batchnorm_in_train_mode_starts_each_evaluation_afresh(context_of, data, quick):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    context = context_of(model, [data], mode="train")
    before = {name: tensor.clone() for name, tensor in context.buffers.items()}
    values = {e: measure_llc(context, quick(engine=e)) for e in ("loop",)}
    assert values["loop"].probe_mode == "train"
    assert all(torch.equal(before[name], context.buffers[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_measured_with_a_wide_state(dtype, data, loss):
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(dtype)
    batch = (data[0].to(dtype), model(data[0].to(dtype)).detach())
    config = SamplerConfig(n_beta=100.0)
    estimate = estimate_llc(model, [batch], loss, n_samples=200, config=config)
    # d = 8: at nβ = 100 a step is far below what bf16 weights could hold.
    assert estimate.lambda_hat == pytest.approx(4.0, rel=0.25)
    assert model.weight.dtype == dtype


def test_under_autocast_the_weights_of_each_step_are_used(model, data, loss, quick):
    def mixed(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss(model, batch).float()

    found = estimate_llc(model, [data], mixed, n_samples=200, config=quick())
    plain = estimate_llc(model, [data], loss, n_samples=200, config=quick())
    assert found.lambda_hat == pytest.approx(plain.lambda_hat, rel=0.3)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_chains_in_parts_give_the_numbers_of_all_at_once(width, context_of, data):
    model = nn.Sequential(nn.Linear(3, 40), nn.Tanh(), nn.Linear(40, 2))
    batches = list(zip(*(part.split([120, 80]) for part in data), strict=True))
    problem = pose(context_of(model, batches))
    x = nearby(problem, 5)
    whole, parts = (evaluate(VmapEngine(problem, w), problem, x, range(2)) for w in (5, width))
    assert parts.batch_losses.shape == (2, 5)
    for name in ("loss", "terms", "batch_losses", "grad"):
        expected = getattr(whole, name)
        assert torch.allclose(getattr(parts, name), expected, rtol=1e-5, atol=1e-7), name


def test_the_estimate_does_not_depend_on_the_parts(context_of, data, quick):
    context = context_of(wide(), [data])
    size = vmap_bytes(pose(context), 4, 2)
    whole = measure_llc(context, quick(engine="vmap"))
    context.generator.manual_seed(3)
    parts = measure_llc(context, quick(engine="vmap", max_bytes=size))
    assert parts.lambda_hat == pytest.approx(whole.lambda_hat, rel=1e-3)


def wide():
    return nn.Sequential(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 2))


def test_memory_decides_for_the_widest_engine_that_fits(context_of, data, quick, caplog):
    context = context_of(wide(), [data])
    problem = pose(context)
    assert problem.kept_bytes >= 4 * 200 * 400
    limits = {
        ("auto", 4): vmap_bytes(problem, 4, 4),
        ("auto", 2): vmap_bytes(problem, 4, 2),
        ("loop", 1): loop_bytes(problem, 4),
        ("inplace", 1): inplace_bytes(problem),
    }
    assert sorted(limits.values(), reverse=True) == list(limits.values())
    for (engine, width), limit in limits.items():
        plan = plan_memory(problem, quick(max_bytes=limit))
        assert (plan.engine, plan.width) == (engine, width)
    with pytest.raises(RefusedError, match="max_bytes"):
        plan_memory(problem, quick(max_bytes=inplace_bytes(problem) - 1))
    with caplog.at_level(logging.INFO, logger="phasewatch.monitor.sampling"):
        estimate = measure_llc(context, quick(max_bytes=inplace_bytes(problem)))
    assert (estimate.engine, estimate.num_chains) == ("inplace", 4)
    assert "4 chains side by side would exceed" in caplog.text


@pytest.mark.parametrize("engine", ["vmap", "loop", "inplace"])
def test_an_engine_that_was_asked_for_is_refused_where_it_does_not_fit(
    engine, context_of, data, quick
):
    problem = pose(context_of(wide(), [data]))
    with pytest.raises(RefusedError, match=f"engine='{engine}'"):
        plan_memory(problem, quick(engine=engine, max_bytes=1000))


def test_looking_at_a_problem_leaves_nothing_behind(context_of, data):
    """A graph that is watched by a hook which returns what it is given stays alive for ever."""
    model = wide()
    size = sum(parameter.numel() for parameter in model.parameters())
    pose(context_of(model, [data]))
    gc.collect()
    left = [o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (size,)]
    assert left == []
