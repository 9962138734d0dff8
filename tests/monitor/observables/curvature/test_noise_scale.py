"""The noise scale on planted problems, and as a training run's own micro-batches show it."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from phasewatch.monitor import Watch
from phasewatch.monitor.core.context import MicroBatches, StepRecord
from phasewatch.monitor.core.errors import ConfigError, MeasurementError, RefusedError
from phasewatch.monitor.core.estimates import EstimateStatus
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.curvature.noise_scale import GradientNoiseScale
from phasewatch.monitor.observables.curvature.noise_statistics import noise_and_signal
from support.bitwise import differences, quietly
from support.observers import make_monitor
from support.training import make_trainer, record_case, unmonitored
from support.zoo import find

SIGMA = torch.linspace(0.5, 2.0, 10, dtype=torch.float64)
MEAN = torch.full((10,), 0.3, dtype=torch.float64)
NOISE, SIGNAL = float(SIGMA.square().sum()), float(MEAN.square().sum())


class Center(nn.Module):
    """Loss ½|w − x|² at w = 0: the gradient of a sample is −x."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(10, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * (self.w - x).square().sum(dim=-1)


def draws(num, seed=0):
    random = torch.Generator().manual_seed(seed)
    return MEAN + SIGMA * torch.randn(num, 10, generator=random, dtype=torch.float64)


def loss_fn(model, batch):
    return model(batch)


def context_of(batches, loss=loss_fn, **fields):
    made = measure_context(Center(), step=4, loss_fn=loss, batches=batches, seed=1)
    return replace(made, **fields)


def recorded(gradients, num_replicas=1, sizes=None):
    """What a step sees whose loss is divided by the number of micro-batches."""
    num = len(gradients)
    micro = MicroBatches(
        first_norm=gradients[0].norm() / num,
        num_samples=sizes or (4,) * num,
        num_replicas=num_replicas,
    )
    norm = gradients.mean(dim=0).norm()
    return StepRecord(step=4, gradient_norm=norm, params_before={}, micro_batches=micro)


# ---- the formula


@pytest.mark.parametrize("sizes", [(4, 4, 4, 4), (2, 8, 4, 1)])
def test_noise_and_signal_are_unbiased_on_a_planted_problem(sizes):
    samples = draws(4_000 * sum(sizes)).view(4_000, sum(sizes), 10)
    parts = [part.mean(dim=1) for part in samples.split(sizes, dim=1)]
    gradients = torch.stack(parts, dim=1)
    found = np.array(
        [
            noise_and_signal(one.mean(dim=0).norm(), recorded(one, sizes=sizes).micro_batches)
            for one in gradients
        ]
    )
    error = found.std(axis=0) / math.sqrt(len(found))
    assert found[:, 0].mean() == pytest.approx(NOISE, abs=4 * error[0])
    assert found[:, 1].mean() == pytest.approx(SIGNAL, abs=4 * error[1])
    assert error[0] < 0.04 * NOISE
    assert error[1] < 0.12 * SIGNAL


def test_the_formula_is_that_of_the_paper():
    small, big, num = 3.0, 1.5, 4
    micro = MicroBatches(first_norm=torch.tensor(small / num), num_samples=(8,) * num)
    noise, signal = noise_and_signal(torch.tensor(big), micro)
    assert noise == pytest.approx((small**2 - big**2) / (1 / 8 - 1 / 32))
    assert signal == pytest.approx((32 * big**2 - 8 * small**2) / (32 - 8))


def test_processes_make_the_big_batch_bigger():
    samples = draws(6_000 * 16).view(6_000, 2, 2, 4, 10).mean(dim=3)  # step, process, micro-batch
    found = []
    for step in samples:
        micro = replace(recorded(step[0]).micro_batches, num_replicas=2)
        found.append(noise_and_signal(step.mean(dim=(0, 1)).norm(), micro))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    assert mean[0] == pytest.approx(NOISE, abs=4 * error[0])
    assert mean[1] == pytest.approx(SIGNAL, abs=4 * error[1])


def test_the_means_are_taken_before_the_ratio():
    observable = GradientNoiseScale(window=300)
    samples = draws(300 * 32, seed=3).view(300, 4, 8, 10).mean(dim=2)
    for one in samples:
        record = recorded(one, sizes=(8,) * 4)
        found = {o.name: o for o in observable.measure(context_of([], record=record))}
    scale = found["gradient_noise_scale"]
    noise, signal = (found[f"gradient_noise_scale/{part}"] for part in ("noise", "signal"))
    assert scale.value == pytest.approx(noise.value / signal.value)
    assert scale.value == pytest.approx(NOISE / SIGNAL, abs=3 * scale.stderr)
    assert (scale.status, scale.unit) == (EstimateStatus.OK, "samples")
    assert scale.stderr < 0.5 * scale.value


def test_few_steps_and_a_signal_not_told_from_zero_are_marked():
    observable = GradientNoiseScale()
    record = recorded(draws(16).view(4, 4, 10).mean(dim=1))
    first = observable.measure(context_of([], record=record))[0]
    assert first.status is EstimateStatus.UNCONVERGED
    assert "1 steps so far" in first.reason
    pure = GradientNoiseScale(source="probe").measure(context_of([draws(64) - MEAN]))[0]
    assert pure.status is EstimateStatus.UNCONVERGED
    assert "not told from zero" in pure.reason


# ---- gradients of the probe


def test_the_probe_gives_the_mean_over_every_choice_of_the_small_batch():
    samples = draws(24)
    found = GradientNoiseScale(num_gradients=6).measure(context_of([samples]))
    gradients = samples.view(6, 4, 10).mean(dim=1)
    big = float(gradients.mean(dim=0).square().sum())
    small = float(gradients.square().sum(dim=1).mean())
    noise = (small - big) / (1 / 4 - 1 / 24)
    signal = (24 * big - 4 * small) / (24 - 4)
    assert found[1].value == pytest.approx(noise)
    assert found[2].value == pytest.approx(signal)
    assert found[0].value == pytest.approx(noise / signal)


def test_the_error_of_the_probe_is_as_large_as_it_says():
    found = [GradientNoiseScale().measure(context_of([draws(512, seed)])) for seed in range(40)]
    for part, truth in ((1, NOISE), (2, SIGNAL)):
        pulls = [(one[part].value - truth) / one[part].stderr for one in found]
        assert abs(np.mean(pulls)) < 0.6
        assert 0.6 < np.std(pulls) < 1.6


def test_a_probe_of_all_the_data_knows_the_gradient_exactly():
    samples = draws(64)
    found = GradientNoiseScale().measure(context_of([samples], n_data=64))
    assert found[2].value == pytest.approx(float(samples.mean(dim=0).square().sum()))
    assert found[2].stderr == 0.0


def test_drawing_without_replacement_leaves_the_signal_unbiased():
    data = draws(40, seed=8)
    truth = float(data.mean(dim=0).square().sum())
    random = torch.Generator().manual_seed(2)
    found = []
    for _ in range(100):
        some = data[torch.randperm(40, generator=random)[:32]]
        context = context_of([some], n_data=40)
        found.append(GradientNoiseScale(num_gradients=4).measure(context)[2].value)
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / math.sqrt(100))


@pytest.mark.parametrize("batch", [lambda x: {"x": x, "k": 3}, lambda x: (x, ["a"]), lambda x: [x]])
def test_nested_batches_are_cut(batch):
    samples = draws(24)

    def loss(model, given):
        return model(given["x"] if isinstance(given, dict) else given[0])

    plain = GradientNoiseScale(num_gradients=6).measure(context_of([samples]))
    nested = GradientNoiseScale(num_gradients=6).measure(context_of([batch(samples)], loss))
    assert nested[0].value == plain[0].value


def test_a_probe_in_many_batches_is_taken_as_it_is():
    samples = draws(24)
    whole = GradientNoiseScale(num_gradients=6).measure(context_of([samples]))
    parts = GradientNoiseScale(num_gradients=6).measure(context_of(list(samples.split(4))))
    assert parts[0].value == whole[0].value


# ---- training's own micro-batches


class Fixed(LightningModule):
    """`Center` that never moves."""

    def __init__(self, manual=0):
        super().__init__()
        self.center = Center()
        self.automatic_optimization = not manual
        self.manual = manual

    def training_step(self, batch, batch_idx):
        loss = self.center(batch[0]).mean()
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss / 4)
        for _ in range(self.manual - 1):
            self.manual_backward(self.center(batch[0]).mean() / 4)
        if batch_idx % 4 == 3:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()
        return None

    def probe_loss(self, batch):
        return self.center(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fitted(folder, module, observable, **options):
    """A run over 128 samples in micro-batches of eight."""
    monitor = make_monitor(folder, observables=[observable], every_n_steps=1)
    loader = DataLoader(TensorDataset(draws(128)), batch_size=8, shuffle=False)
    trainer = make_trainer(folder, [monitor], max_epochs=1, **options)
    quietly(lambda: trainer.fit(module, loader))
    assert monitor.watch.health.measurement_failures.total() == 0
    return monitor


def expected_pairs():
    """By hand: the first of four micro-batches against their mean, for each step."""
    for step in draws(128).view(4, 4, 8, 10):
        small = float(step[0].mean(dim=0).square().sum())
        big = float(step.mean(dim=(0, 1)).square().sum())
        noise = (small - big) / (1 / 8 - 1 / 32)
        yield noise, big - noise * (1 / 32 - 1 / 128)


@pytest.mark.parametrize("way", ["automatic", "manual", "scaled"])
def test_accumulated_steps_show_their_noise(way, tmp_path):
    options = {} if way == "manual" else {"accumulate_grad_batches": 4}
    if way == "scaled":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler)]
    observable = GradientNoiseScale(source="training")
    monitor = fitted(tmp_path, Fixed(manual=int(way == "manual")), observable, **options)
    noise, signal = (
        monitor.history(f"gradient_noise_scale/{p}", include_unconverged=True).values
        for p in ("noise", "signal")
    )
    pairs = np.array(list(expected_pairs()))
    means = pairs.cumsum(axis=0) / np.arange(1, 5)[:, None]
    tolerance = 1e-2 if way == "scaled" else 1e-9
    np.testing.assert_allclose(noise, means[:, 0], rtol=tolerance)
    np.testing.assert_allclose(signal, means[:, 1], rtol=tolerance)


def test_two_backward_passes_in_a_batch_are_no_micro_batch(tmp_path):
    monitor = fitted(tmp_path, Fixed(manual=2), GradientNoiseScale())
    noise = monitor.history("gradient_noise_scale/noise", include_unconverged=True).values
    assert len(noise) == 4
    assert np.ptp(noise) == 0.0  # always of the same probe, at weights that never move


UNTOUCHED = (
    "gradient accumulation with a remainder",
    "accumulation that changes with the epoch",
    "manual optimization with accumulation",
    "two manual optimizers with a loss_fn",
    "LBFGS",
    "steps that return None",
    "sparse gradients",
    "a backbone thawed in the second epoch",
    "raw optimizer, global_step stays 0",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if i > 2 else [])
        for i, name in enumerate(UNTOUCHED)
    ],
)
def test_training_is_not_touched_however_it_accumulates(name, tmp_path):
    case = find(name)
    made = []

    def monitors():
        options = {"observables": [GradientNoiseScale()], "every_n_steps": 1}
        made.append(make_monitor(tmp_path, **(dict(case.monitor) | options)))
        return made

    watched = record_case(case, tmp_path, monitors=monitors)
    assert differences(unmonitored(name), watched) == []
    assert made[0].watch.health.measurements["gradient_noise_scale"] >= 2


def test_a_plain_loop_shows_its_micro_batches(tmp_path):
    settings = {"store": "sqlite://", "exporter": {"enabled": False}, "every_n_steps": 1}
    model = Center()
    observable = GradientNoiseScale(source="training")
    with Watch(settings, observables=[observable]) as watch:
        watch.check(model)
        for step, parts in enumerate(draws(128).view(4, 4, 8, 10), start=1):
            model.zero_grad()
            for part in parts:
                (512.0 * model(part).mean() / 4).backward()
                watch.after_backward(step, model.named_parameters(), len(part), loss_scale=512.0)
            model.w.grad /= 512.0
            watch.before_step(step, model.named_parameters())
            watch.probe(step, model)
        _, noise, _ = watch.history("gradient_noise_scale/noise", include_unconverged=True)
    pairs = np.array(list(expected_pairs()))
    np.testing.assert_allclose(noise[-1], pairs[:, 0].mean())


def test_a_step_that_overflowed_is_left_out():
    good = recorded(draws(16).view(4, 4, 10).mean(dim=1))
    bad = replace(good, gradient_norm=torch.tensor(math.inf))
    observable = GradientNoiseScale(source="training")
    observable.measure(context_of([], record=good))
    with pytest.raises(MeasurementError, match="looked for a step that accumulates"):
        observable.measure(context_of([], record=bad))


def test_the_window_survives_a_resume():
    observable, resumed = GradientNoiseScale(), GradientNoiseScale()
    records = [recorded(part.view(4, 4, 10).mean(dim=1)) for part in draws(96).split(16)]
    for record in records[:-1]:
        observable.measure(context_of([], record=record))
    state = observable.state_dict()
    resumed.load_state_dict(state)
    last = context_of([], record=records[-1])
    assert state == observable.state_dict()
    for one, other in itertools.zip_longest(observable.measure(last), resumed.measure(last)):
        assert (one.value, one.stderr) == (other.value, other.stderr)


# ---- refusals


def test_without_loss_or_accumulation_there_is_a_way_out():
    with pytest.raises(RefusedError, match=r"loss_fn=.*source=\"training\""):
        GradientNoiseScale().check(context_of([draws(32)], None))
    GradientNoiseScale(source="training").check(context_of([], None))


def test_a_probe_too_small_to_cut_is_refused():
    with pytest.raises(RefusedError, match="at least 4 parts"):
        GradientNoiseScale().check(context_of([draws(3)]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": "ddp"}, "source is 'ddp'"),
        ({"window": 2}, "window is 2; give at least 4"),
        ({"num_gradients": 100}, "num_gradients is 100; give 4 to 64"),
    ],
)
def test_wrong_arguments_are_said(options, said):
    with pytest.raises(ConfigError, match=said):
        GradientNoiseScale(**options)
