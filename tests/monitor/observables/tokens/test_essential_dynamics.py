"""Principal components of the path of a model's losses, and where it turns."""

from __future__ import annotations

import copy
import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import MeasurementError, RefusedError
from phasewatch.monitor.core.meaning import Meanings, Role
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.tokens import essential_dynamics
from phasewatch.monitor.observables.tokens.essential_dynamics import ROWS, WIDTH, EssentialDynamics
from phasewatch.monitor.observables.tokens.trajectory import fit, sharp_turns, turns


class Given(nn.Module):
    """Its batch is its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def probe_token_losses(self, batch: torch.Tensor) -> torch.Tensor:
        return self.weight * batch


def context_of(step: int, losses: np.ndarray, **options):
    batch = torch.from_numpy(np.atleast_2d(losses))
    return measure_context(Given(), step=step, batches=[batch], **options)


def directions(num: int, width: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(5).normal(size=(width, num)))[0].T


CORNERS = (40, 70)


def planted(width: int = 60, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A path of three straight stretches, each along a direction of its own.

    It goes 6 along the first until step 40, 3 along the second until step 70 and 2 along the third
    until step 100. Returns the rows, shape (101, width), and the path itself, shape (101, 3).
    """
    t = np.arange(101.0)
    ends = (0.0, *CORNERS, 100.0)
    lengths = zip((6.0, 3.0, 2.0), ends[:-1], ends[1:], strict=True)
    path = np.stack([far * np.clip((t - a) / (b - a), 0.0, 1.0) for far, a, b in lengths], axis=1)
    jitter = noise * np.random.default_rng(6).normal(size=(101, width))
    return 2.0 + path @ directions(3, width) + jitter, path


def follow(observable: EssentialDynamics, rows: np.ndarray, every: int = 1) -> list[dict]:
    return [
        {o.name: o.value for o in observable.measure(context_of(step, row))}
        for step, row in list(enumerate(rows))[::every]
    ]


def test_the_fit_is_that_of_a_singular_value_decomposition() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 35)) * np.geomspace(5.0, 0.1, 35)
    left, size, right = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found = fit(rows)
    np.testing.assert_allclose(found.shares, (size**2 / (size**2).sum())[:3], rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.scores), np.abs(left * size)[:, :3], atol=1e-9)
    np.testing.assert_allclose(np.abs(found.loadings), np.abs(right[:3]), atol=1e-9)
    # score and loading of a component have signs that fit each other
    np.testing.assert_allclose((rows - rows.mean(axis=0)) @ found.loadings.T, found.scores)


def test_a_planted_path_is_recovered_with_its_shares_and_its_turning_points() -> None:
    rows, path = planted(noise=0.01)
    observable = EssentialDynamics()
    seen = follow(observable, rows)
    spread = np.sort(np.linalg.eigvalsh(np.cov(path.T)))[::-1]
    shares = np.array([seen[-1][f"essential_dynamics/share_{k}"] for k in (1, 2, 3)])
    np.testing.assert_allclose(np.sort(shares)[::-1], spread / spread.sum(), atol=0.005)
    steps, found = observable.trajectory()
    assert steps.tolist() == list(range(101))
    # the path is what was planted, but for a rotation: all distances are the same
    planted_distances = np.linalg.norm(path[:, None] - path[None], axis=-1)
    distances = np.linalg.norm(found.scores[:, None] - found.scores[None], axis=-1)
    np.testing.assert_allclose(distances, planted_distances, atol=0.15)
    points = observable.turning_points()
    assert [step for step, _ in points] == [pytest.approx(corner, abs=2) for corner in CORNERS]
    assert [angle for _, angle in points] == pytest.approx([math.pi / 2] * 2, abs=0.2)


def test_the_turn_is_told_live_soon_after_the_corner_and_not_before_it() -> None:
    rows, _ = planted()
    live = np.array([one["essential_dynamics"] for one in follow(EssentialDynamics(), rows)])
    assert live[: CORNERS[0] + 1].max() < 0.1
    reach = 12  # a tenth of 6.7, at 0.1 a step along the second stretch, is seven steps
    assert live[CORNERS[0] : CORNERS[0] + reach].max() == pytest.approx(math.pi / 2, abs=0.2)
    assert live[CORNERS[0] + 2 * reach : CORNERS[1] + 1].max() < 0.1


def test_a_circle_turns_everywhere_by_the_angle_of_its_chords() -> None:
    at = np.linspace(0.0, 2.0 * np.pi, 400)
    circle = np.stack([np.cos(at), np.sin(at), 0.0 * at], axis=1)
    chord = 2.0 * math.asin(0.1)  # two chords of a tenth of the diameter, as angles at the centre
    inside = turns(circle)[40:-40]
    np.testing.assert_allclose(inside, chord, atol=0.03)
    assert sharp_turns(circle) == []


def test_a_path_that_rests_turns_once_however_much_it_jitters() -> None:
    random = np.random.default_rng(2)
    line = np.linspace(0.0, 1.0, 30)
    leg, rest = np.stack([line, 0 * line, 0 * line], axis=1), np.tile([1.0, 0.0, 0.0], (50, 1))
    path = np.concatenate([leg, rest, [1.0, 0.0, 0.0] + leg[:, [1, 0, 2]]])
    path += 0.005 * random.normal(size=path.shape)
    ((place, angle),) = sharp_turns(path)
    assert 28 <= place <= 82
    assert angle == pytest.approx(math.pi / 2, abs=0.4)


def overtaking() -> np.ndarray:
    """Rows that swing along two directions in turn: the second swing grows past the first."""
    t = np.arange(80)
    first, second, third = directions(3, 40)
    growing = t / 40.0 * (t // 2 % 2 - 0.5)
    slow = 0.1 * np.cos(t / 7.0)
    return np.outer(t % 2 - 0.5, first) + np.outer(growing, second) + np.outer(slow, third)


def test_order_and_signs_are_kept_from_fit_to_fit() -> None:
    rows = overtaking()
    fits = [fit(rows[:10])]
    free = [fit(rows[:10])]
    for end in range(11, len(rows) + 1):
        fits.append(fit(rows[:end], fits[-1].loadings))
        free.append(fit(rows[:end]))

    def facing(path):
        return np.array([(a.loadings * b.loadings).sum(axis=1) for a, b in pairwise(path)])

    assert facing(fits).min() > 0.5
    assert facing(free).min() < 0.0, "without it, they would have changed"
    assert np.all(np.diff(fits[0].shares) <= 0.0)
    assert fits[-1].shares[0] < fits[-1].shares[1], "one has overtaken the other, and kept its name"
    np.testing.assert_allclose(np.sort(fits[-1].shares), np.sort(free[-1].shares), atol=1e-12)


def test_a_component_that_has_outgrown_another_by_far_goes_before_it() -> None:
    t = np.arange(80)
    first, second, _ = directions(3, 40)
    rows = np.outer(t % 2 - 0.5, first) + np.outer(t / 10.0 * (t // 2 % 2 - 0.5), second)
    kept = fit(rows[:10])
    assert abs(kept.loadings[0] @ first) > 0.9
    for end in range(11, len(rows) + 1):
        kept = fit(rows[:end], kept.loadings)
    assert abs(kept.loadings[0] @ second) > 0.99
    assert kept.shares[0] > 2.0 * kept.shares[1]


def test_noise_is_no_turn() -> None:
    random = np.random.default_rng(7)
    assert sharp_turns(random.normal(size=(200, 3))) == []
    _, path = planted()
    jittery = path + 0.1 * random.normal(size=path.shape)
    points = sharp_turns(jittery)
    assert [step for step, _ in points] == [pytest.approx(corner, abs=6) for corner in CORNERS]


def test_streams_do_not_jump() -> None:
    rows, _ = planted()
    seen = follow(EssentialDynamics(), rows)
    step = np.linalg.norm(np.diff(rows, axis=0), axis=1).max()
    for k in (1, 2, 3):
        values = np.array([one[f"essential_dynamics/score_{k}"] for one in seen])
        assert np.abs(np.diff(values)).max() < 2.0 * step


def test_before_there_is_a_path_everything_is_zero_and_finite() -> None:
    rows, _ = planted()
    observable = EssentialDynamics()
    assert observable.turning_points() == []
    with pytest.raises(MeasurementError, match="no path before the first measurement"):
        observable.trajectory()
    (only,) = follow(observable, rows[:1])
    assert set(only.values()) == {0.0}
    _, second = follow(EssentialDynamics(), rows[:2])
    assert second["essential_dynamics/share_1"] == pytest.approx(1.0)
    assert second["essential_dynamics/share_2"] == 0.0
    assert second["essential_dynamics/score_1"] > 0.0


def test_memory_is_bounded_in_both_directions(monkeypatch) -> None:
    rows, width = 40, 64
    monkeypatch.setattr(essential_dynamics, "ROWS", rows)
    monkeypatch.setattr(essential_dynamics, "WIDTH", width)
    observable = EssentialDynamics()
    slope = np.random.default_rng(4).normal(size=3 * width)
    for step in range(rows + 20):
        observable.measure(context_of(step, slope * step))
    steps, found = observable.trajectory()
    assert len(steps) == rows
    assert (steps[0], steps[-1]) == (0, rows + 19)
    assert np.diff(steps).max() <= 3
    assert found.loadings.shape == (3, width)
    assert found.shares[0] == pytest.approx(1.0), "the same numbers are kept at each measurement"
    file = io.BytesIO()
    torch.save(observable.state_dict(), file)
    assert file.getbuffer().nbytes < 1.5 * 4 * rows * width + 4096
    assert 4 * ROWS * WIDTH == 2**20, "and in all it is what the constants say"


def test_a_resumed_run_goes_on_as_if_nothing_had_been() -> None:
    rows = planted(noise=0.01)[0][::4]
    half = 15
    expected = follow(EssentialDynamics(), rows)[half:]
    first = EssentialDynamics()
    follow(first, rows[:half])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    kept = copy.deepcopy(state)
    resumed = EssentialDynamics()
    resumed.load_state_dict(state)
    assert state == kept
    for step in range(half, len(rows)):
        seen = {o.name: o.value for o in resumed.measure(context_of(step, rows[step]))}
        assert seen == pytest.approx(expected[step - half], abs=1e-5)
    empty = EssentialDynamics()
    empty.load_state_dict(EssentialDynamics().state_dict())
    assert empty.turning_points() == []


def test_what_was_measured_after_the_checkpoint_is_forgotten() -> None:
    rows, _ = planted()
    observable = EssentialDynamics()
    follow(observable, rows[:20])
    observable.measure(context_of(10, rows[10]))
    assert observable.trajectory()[0].tolist() == list(range(11))


def test_another_probe_is_another_path() -> None:
    rows, _ = planted()
    observable = EssentialDynamics()
    follow(observable, rows[:20])
    observable.measure(context_of(20, rows[20][:30]))
    assert observable.trajectory()[0].tolist() == [20]


def test_logits_or_anything_else_may_take_the_place_of_losses() -> None:
    rows, _ = planted()
    observable = EssentialDynamics(lambda model, batch: model.weight * batch.reshape(3, 2, -1))
    expected = follow(EssentialDynamics(), rows[:30])
    assert follow(observable, rows[:30]) == expected


def test_losses_per_sample_will_do_and_an_averaged_loss_is_refused() -> None:
    batch = torch.arange(6.0).reshape(3, 2)
    model = nn.Linear(2, 1)
    each = measure_context(model, step=1, batches=[batch], loss_fn=lambda m, x: m(x)[:, 0])
    EssentialDynamics().check(each)
    assert len(EssentialDynamics().measure(each)) == 7
    mean = measure_context(model, step=1, batches=[batch], loss_fn=lambda m, x: m(x).mean())
    with pytest.raises(RefusedError, match=r"the probe loss gives losses of shape \(\)"):
        EssentialDynamics().check(mean)
    with pytest.raises(RefusedError, match=r"probe_token_losses\(batch\) on Linear"):
        EssentialDynamics().check(measure_context(model, step=1, batches=[batch]))


def test_losses_that_are_not_finite_are_left_out_and_no_reason_to_refuse() -> None:
    rows, _ = planted()
    observable = EssentialDynamics()
    broken = context_of(0, np.full(60, np.nan))
    observable.check(broken)
    with pytest.raises(MeasurementError, match="not finite"):
        observable.measure(broken)
    follow(observable, rows[:5])
    assert len(observable.trajectory()[0]) == 5


def test_it_is_an_observable_whose_turns_open_no_transition_alone() -> None:
    assert isinstance(EssentialDynamics(), Observable)
    assert EssentialDynamics.cost is Cost.FORWARD
    assert Meanings().of(EssentialDynamics().name).role is Role.SUPPORTING
