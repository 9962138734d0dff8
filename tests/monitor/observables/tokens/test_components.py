"""Losses by component: positions, names, classes, keys of the batch, slices."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.meaning import guess
from phasewatch.monitor.core.transitions import TransitionKind
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.tokens.components import ComponentLoss
from phasewatch.monitor.observables.weights.norms import MAX_GROUPS
from phasewatch.monitor.transitions.classification import classify
from phasewatch.monitor.transitions.streams import kind_of
from support.alarms import alarm


class Classifier(nn.Module):
    """Three classes of points in two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        nn.init.constant_(self.linear.bias, 0.5)
        nn.init.orthogonal_(self.linear.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Sequences(nn.Module):
    """Its batch holds its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def probe_token_losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.weight * batch["losses"]


def points(num: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(num, 2, generator=random), torch.randint(3, (num,), generator=random)


def per_sample(model: nn.Module, batch) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def averaged(model: nn.Module, batch) -> torch.Tensor:
    return per_sample(model, batch).mean()


POINTS = (points(12, 1), points(7, 2))


def classes_by_hand(model: nn.Module) -> dict[str, float]:
    """Mean cross-entropy of each class, by a loop over all samples in float64."""
    found: dict[int, list[float]] = {}
    for x, y in ((x, y) for batch in POINTS for x, y in zip(*batch, strict=True)):
        logits = (model.linear.weight.double() @ x.double() + model.linear.bias.double()).detach()
        loss = float(logits.exp().sum().log() - logits[y])
        found.setdefault(int(y), []).append(loss)
    return {f"loss_class_{k}": sum(one) / len(one) for k, one in sorted(found.items())}


def values(observable: ComponentLoss, context) -> dict[str, float]:
    return {o.name: o.value for o in observable.measure(context)}


@pytest.mark.parametrize("loss_fn", [per_sample, averaged])
def test_losses_by_class_are_those_of_a_loop_also_where_the_loss_is_averaged(loss_fn) -> None:
    model = Classifier()
    context = measure_context(model, step=2, batches=POINTS, loss_fn=loss_fn)
    found = values(ComponentLoss("class"), context)
    assert list(found) == ["loss_class_0", "loss_class_1", "loss_class_2"]
    assert found == pytest.approx(classes_by_hand(model), rel=1e-5)
    assert found == pytest.approx(values(ComponentLoss(1, label="class"), context))


def sequences(num: int, seed: int, length: int = 4) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "losses": torch.rand(num, length, generator=random),
        "kind": torch.randint(-1, 2, (num,), generator=random),
        "token": torch.randint(2, (num, length), generator=random),
    }


BATCHES = (sequences(9, 3), sequences(5, 4))


def context_of(*batches, **options):
    return measure_context(Sequences(), step=2, batches=batches or BATCHES, **options)


def grouped(key) -> dict[int, float]:
    """Mean loss of the tokens with each value of a key, by loops."""
    found: dict[int, list[float]] = {}
    for batch in BATCHES:
        for b, row in enumerate(batch["losses"].tolist()):
            for t, loss in enumerate(row):
                found.setdefault(int(key(batch, b, t)), []).append(loss)
    return {k: sum(one) / len(one) for k, one in sorted(found.items())}


def test_losses_by_position_are_column_means_over_all_batches() -> None:
    expected = grouped(lambda batch, b, t: t)
    found = values(ComponentLoss(), context_of())
    assert found == pytest.approx({f"loss_position_{k}": v for k, v in expected.items()})
    named = values(ComponentLoss(["units", "tens", "hundreds", "carry"]), context_of())
    assert list(named) == ["loss_units", "loss_tens", "loss_hundreds", "loss_carry"]
    assert list(named.values()) == list(found.values())
    labelled = values(ComponentLoss(label="digit"), context_of())
    assert list(labelled)[3] == "loss_digit_3"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kind", lambda batch, b, t: batch["kind"][b]),
        ("token", lambda batch, b, t: batch["token"][b, t]),
    ],
)
def test_a_key_of_the_batch_groups_samples_or_tokens(key, value) -> None:
    expected = {f"loss_{key}_{k}": v for k, v in grouped(value).items()}
    assert values(ComponentLoss(key), context_of()) == pytest.approx(expected)
    function = ComponentLoss(lambda batch: batch[key], label=key)
    assert values(function, context_of()) == pytest.approx(expected)


def test_slices_of_a_function_may_overlap_and_need_not_cover_everything() -> None:
    def slices(batch):
        return {"hard": batch["kind"] == 1, "late hard": batch["token"].bool()}

    found = values(ComponentLoss(slices), context_of())
    assert found == pytest.approx(
        {
            "loss_hard": grouped(lambda batch, b, t: batch["kind"][b] == 1)[1],
            "loss_late hard": grouped(lambda batch, b, t: batch["token"][b, t])[1],
        }
    )


def test_each_stream_gets_the_detector_of_losses_and_its_fall_is_an_acquisition() -> None:
    for observation in ComponentLoss(label="digit").measure(context_of()):
        assert "/" not in observation.name
        assert kind_of(guess(observation.name), observation.stderr) == "loss"
    evidence = {"loss_digit_3": alarm(direction=Direction.DOWN)}
    assert classify(evidence, has_validation=False) is TransitionKind.ACQUISITION


def test_validation_data_is_told_by_the_name() -> None:
    context = context_of(val_batches=[BATCHES[1]])
    found = values(ComponentLoss(validation=True), context)
    expected = BATCHES[1]["losses"].double().mean(dim=0).tolist()
    assert found == pytest.approx({f"val_loss_position_{k}": v for k, v in enumerate(expected)})


def test_components_are_bounded_in_number_and_the_rest_is_told_once(caplog) -> None:
    batch = sequences(3, 5, length=MAX_GROUPS + 8)
    observable = ComponentLoss()
    with caplog.at_level(logging.WARNING, "phasewatch"):
        found = values(observable, context_of(batch))
        observable.measure(context_of(batch))
    assert len(found) == MAX_GROUPS + 1
    rest = float(batch["losses"][:, MAX_GROUPS:].mean())
    assert found["loss_position_other"] == pytest.approx(rest)
    (said,) = caplog.messages
    assert f"{MAX_GROUPS + 8} components" in said
    assert "the other 8" in said


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("colour", "looked for 'colour' in the batch; it is or has losses, kind, token"),
        ("class", "looked for 'labels' or .* in the batch"),
        ("losses", "'losses' in the batch gives torch.float32 of shape"),
        (["a", "b"], "there are 2 names"),
        (lambda batch: {"a": batch["kind"]}, "slice 'a' is torch.int64"),
        (lambda batch: {"none": batch["kind"] > 5}, "no sample of the probe is in none"),
        (lambda batch: {"a": torch.ones(2, dtype=torch.bool)}, "slice 'a' has shape"),
        (lambda batch: 3, "the function gives int"),
    ],
)
def test_what_cannot_be_sliced_is_refused_before_the_first_step(by, message) -> None:
    with pytest.raises(RefusedError, match=message):
        ComponentLoss(by).check(context_of())


def test_names_that_would_not_be_watched_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a/b' holds a '/'"):
        ComponentLoss(["a/b", "c"])
    with pytest.raises(ConfigError, match="'x/y' holds"):
        ComponentLoss(label="x/y")
    with pytest.raises(ConfigError, match="must differ"):
        ComponentLoss(["a", "a"])
    with pytest.raises(ConfigError, match="'a/b' holds"):
        ComponentLoss(lambda batch: {"a/b": batch["kind"] == 1}).measure(context_of())


def test_a_loss_averaged_over_the_batch_has_no_positions() -> None:
    context = measure_context(Classifier(), step=0, batches=POINTS, loss_fn=averaged)
    with pytest.raises(RefusedError, match=r"probe_token_losses\(batch\) on Classifier"):
        ComponentLoss().check(context)


def test_it_is_an_observable() -> None:
    assert isinstance(ComponentLoss(), Observable)
    assert ComponentLoss.cost is Cost.FORWARD
