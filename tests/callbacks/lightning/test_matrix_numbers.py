"""Untouched training is not enough: the number measured must be that of the module itself."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.store.store import Store
from support.observers import make_monitor, probe_loss_and_gradient
from support.training import quietly, record, record_case
from support.zoo import find
from support.zoo_data import loader, val_loader
from support.zoo_layers import Tied
from support.zoo_modules import Plain


class Truth:
    """Compares loss and gradient on the copy, at moved weights, with those of a true copy."""

    name = "truth"
    unit = "1"

    def __init__(self, build):
        self.build = build
        self.module = None
        self.loss_errors = []
        self.gradient_errors = []
        self.largest_gradient = 0.0

    def measure(self, context):
        moved = {n: (p + 0.1).requires_grad_() for n, p in context.params.items()}
        loss, gradient = probe_loss_and_gradient(context, moved)
        true_loss, true_gradient = self.of_a_true_copy(context, moved)
        self.loss_errors.append(abs(float(loss) - float(true_loss)))
        for one, other in zip(gradient, true_gradient, strict=True):
            other = other.to_dense()
            self.gradient_errors.append(float((one - other).abs().max()))
            self.largest_gradient = max(self.largest_gradient, float(other.abs().max()))
        return Observation(name=self.name, step=context.step, value=float(loss))

    def of_a_true_copy(self, context, moved):
        twin = self.build()
        twin.load_state_dict(self.module.state_dict())
        own = dict(twin.named_parameters())
        for name, value in moved.items():
            own[name].requires_grad_(True)
            own[name].data.copy_(value.detach())
        twin.eval()
        loss = twin.loss(context.batches[0])
        return loss, torch.autograd.grad(loss, [own[name] for name in moved])


EXACT = (
    "multilayer perceptron",
    "dropout and BatchNorm",
    "frozen BatchNorm",
    "weight_norm by parametrization",
    "weight_norm by hook",
    "activation checkpointing, non-reentrant",
    "bound methods and partials of self",
    "tied weights",
    "LSTM",
    "attention",
    "frozen layers",
    "sparse gradients",
    "synchronised BatchNorm",
    "manual optimization",
    "reads .item() and branches on it",
)


QUICK = (
    "dropout and BatchNorm",
    "tied weights",
    "LSTM",
    "activation checkpointing, non-reentrant",
    "weight_norm by hook",
    "manual optimization",
)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in EXACT],
)
def test_loss_and_gradient_on_the_copy_are_those_of_a_true_copy(name, tmp_path):
    made = []

    def build():
        module = find(name).build()
        truth.module = module
        return module

    truth = Truth(find(name).build)

    def monitors():
        made.append(make_monitor(tmp_path, observables=[truth]))
        return made

    record(build, find(name).loaders, tmp_path, monitors=monitors, max_epochs=1)
    assert made[0].watch.health.measurements["truth"] == 2, made[0].watch.health
    assert max(truth.loss_errors) < 1e-6
    assert max(truth.gradient_errors) < 1e-6
    assert truth.largest_gradient > 1e-2


def _llc(build, folder, **options):
    folder.mkdir(exist_ok=True)
    made = []

    def monitors():
        made.append(make_monitor(folder, **options))
        return made

    data = find("no shuffling").loaders
    record(build, data, folder, monitors=monitors, max_epochs=1)
    assert made[0].watch.health.measurements["llc"] >= 2, made[0].watch.health
    return made[0].history("llc", include_unconverged=True).values


@pytest.mark.parametrize(
    "name", ["activation checkpointing, non-reentrant", "activation checkpointing, reentrant"]
)
def test_checkpointing_gives_the_number_of_the_plain_network(name, tmp_path):
    sampler = {"engine": "loop"}
    plain = _llc(Plain, tmp_path / "plain", sampler=sampler)
    checkpointed = _llc(find(name).build, tmp_path / "checkpointed", sampler=sampler)
    assert np.allclose(checkpointed, plain, rtol=1e-3)


class _HookByHand(Plain):
    def forward(self, x):
        return 1.1 * self.net(x)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("forward hook that closes over self", _HookByHand),
        ("lambda that closes over self", Plain),
    ],
)
def test_a_closure_over_the_module_gives_the_number_of_the_same_without(name, by_hand, tmp_path):
    closed = _llc(find(name).build, tmp_path / "closed")
    assert np.allclose(closed, _llc(by_hand, tmp_path / "by-hand"), rtol=1e-2)


class _SharedByHand(Plain):
    """What tying means: one matrix, used twice."""

    def __init__(self):
        super().__init__()
        tied = Tied()
        self.load_state_dict(
            {k: v for k, v in tied.state_dict().items() if k.startswith("net")}, strict=True
        )
        self.encoder = tied.encoder

    def forward(self, x):
        matrix = self.encoder.weight
        return self.net(F.linear(torch.tanh(F.linear(x, matrix)), matrix))


class _TiedAlike(Tied):
    def __init__(self):
        Plain().state_dict()  # draws what the other one draws
        super().__init__()


def test_tied_weights_give_the_number_of_one_matrix_used_twice(tmp_path):
    tied = _llc(_TiedAlike, tmp_path / "tied")
    shared = _llc(_SharedByHand, tmp_path / "shared")
    assert np.allclose(tied, shared, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multilayer perceptron", "LSTM", "attention"])
def test_the_vectorised_chains_give_the_number_of_the_plain_loop(name, tmp_path):
    numbers = {
        engine: _llc(
            find(name).build,
            tmp_path / engine,
            sampler={"engine": engine, "num_draws": 32, "num_chains": 4},
        )
        for engine in ("auto", "loop")
    }
    assert np.allclose(numbers["auto"], numbers["loop"], rtol=0.3, atol=0.3)


class _OwnAutocast(Plain):
    """Enters autocast itself, with the weight cache on: weights changed in place would go stale."""

    def loss(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = self(batch[0])
        return F.cross_entropy(logits.float(), batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_chains_move_under_the_users_own_autocast(engine, tmp_path):
    _llc(_OwnAutocast, tmp_path, sampler={"engine": engine, "num_draws": 16})
    store = Store(str(tmp_path / "store.db"))
    (estimate, *_) = [
        observation.detail for observation in store.observations(store.run("watched").id, "llc")
    ]
    store.close()
    for chain in estimate.chain_loss:
        assert len(set(chain)) > len(chain) // 2, chain


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "multilayer perceptron",
        "tied weights",
        "frozen layers",
        "complex parameters",
        "precision bf16-true",
        "precision 64-true",
        "LSTM",
        "one block under two names",
    ],
)
def test_the_last_weight_norm_is_that_of_the_weights_left(name, tmp_path):
    case, built, made = find(name), [], []

    def build():
        built.append(case.build())
        return built[0]

    def monitors():
        made.append(make_monitor(tmp_path))
        return made

    record(build, case.loaders, tmp_path, monitors=monitors, **case.trainer)
    trainable = [p.detach() for p in built[0].parameters() if p.requires_grad]
    truth = sum(float(p.abs().double().square().sum()) for p in trainable) ** 0.5
    steps, values, _ = made[0].history("weight_norm")
    assert steps[-1] == 10
    assert values[-1] == pytest.approx(truth, rel=1e-6)


@pytest.mark.slow
def test_the_probe_follows_an_explicit_loss_function(tmp_path):
    doubled = _llc(
        Plain, tmp_path / "doubled", loss_fn=lambda m, b: 2 * m.loss(b), sampler={"n_beta": 4.0}
    )
    plain = _llc(Plain, tmp_path / "plain", sampler={"n_beta": 8.0, "engine": "loop"})
    assert np.allclose(doubled, plain, rtol=0.5, atol=0.5)
    assert len(doubled) == len(plain)


def test_the_first_loss_is_that_of_the_probe_given(tmp_path):
    probe = loader(shuffle=False, batch_size=40)
    seen = {}

    def remember(model, batch):
        seen["samples"] = len(batch[0])
        return model.loss(batch)

    monitor = make_monitor(
        tmp_path,
        probe=probe,
        loss_fn=remember,
        val_probe=val_loader(),
        probe_config={"num_samples": 40},
    )
    record_case(find("no shuffling"), tmp_path, monitors=lambda: [monitor])
    assert seen["samples"] == 40
    assert monitor.watch.health.measurements["llc"] == 5
    store = quietly(lambda: Store(str(tmp_path / "store.db")))
    (first, *_) = store.observations(store.run("watched").id, "llc")
    store.close()
    assert first.detail.n_samples == 40
