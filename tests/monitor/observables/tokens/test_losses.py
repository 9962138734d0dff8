"""Where losses per token come from, in which order, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.tokens.losses import losses_of


class Bare(nn.Module):
    """Multiplies by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x


class Telling(Bare):
    """Tells its losses per token."""

    def probe_token_losses(self, batch: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self(batch)


BATCH = torch.arange(6.0).reshape(2, 3)


def context_of(model: nn.Module, batches=(BATCH,), **options) -> MeasureContext:
    return measure_context(model, step=1, batches=batches, **options)


def test_the_method_gives_them_at_the_weights_of_the_context_in_float64() -> None:
    (found,) = losses_of(context_of(Telling()), "x")
    assert found.dtype is torch.float64
    assert found.requires_grad is False
    assert torch.equal(found, 2.0 * BATCH.double())


def test_a_function_goes_before_the_method_and_the_method_before_the_probe_loss() -> None:
    context = context_of(Telling(), loss_fn=lambda model, batch: model(batch).sum(dim=1))
    (given,) = losses_of(context, "x", lambda model, batch: 10.0 * model(batch))
    assert torch.equal(given, 20.0 * BATCH.double())
    (method,) = losses_of(context, "x", per="sample")
    assert method.shape == (2, 3)


def test_the_probe_loss_will_do_where_losses_per_sample_do() -> None:
    context = context_of(Bare(), loss_fn=lambda model, batch: model(batch).sum(dim=1))
    (found,) = losses_of(context, "x", per="sample")
    assert found.tolist() == [6.0, 24.0]
    with pytest.raises(RefusedError, match=r"probe_token_losses\(batch\) on Bare.*\(B, T\)"):
        losses_of(context, "x")
    mean = context_of(Bare(), loss_fn=lambda model, batch: model(batch).mean())
    with pytest.raises(RefusedError, match=r"the probe loss gives losses of shape \(\).*\(B,\)"):
        losses_of(mean, "x", per="sample")
    assert losses_of(mean, "x", per="batch")[0].item() == 5.0


def test_validation_batches_are_taken_where_asked_for() -> None:
    context = context_of(Telling(), val_batches=(BATCH + 1.0,))
    (found,) = losses_of(context, "x", validation=True)
    assert torch.equal(found, 2.0 * (BATCH.double() + 1.0))
    with pytest.raises(RefusedError, match="there is no val_probe"):
        losses_of(context_of(Telling()), "x", validation=True)
    with pytest.raises(RefusedError, match="there is no probe"):
        losses_of(context_of(Telling(), batches=()), "x")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda model, batch: model(batch).mean(), r"shape \(\)"),
        (lambda model, batch: model(batch)[:, :0], r"shape \(2, 0\)"),
        (lambda model, batch: model(batch)[None], r"shape \(1, 2, 3\)"),
        (lambda model, batch: model(batch).to(torch.complex64), "torch.complex64"),
        (lambda model, batch: model(batch).tolist(), "gives list"),
    ],
)
def test_what_is_no_loss_per_token_is_refused(losses, message) -> None:
    with pytest.raises(RefusedError, match=message):
        losses_of(context_of(Bare()), "x", losses)


def test_sequences_of_different_lengths_are_refused() -> None:
    context = context_of(Telling(), batches=(BATCH, BATCH[:, :2]))
    with pytest.raises(RefusedError, match=r"\(2, 3\), \(2, 2\).*alike in every batch"):
        losses_of(context, "x")


def test_a_function_that_writes_into_its_batch_does_not_change_the_probe() -> None:
    batch = BATCH.clone()
    losses_of(context_of(Bare(), batches=(batch,)), "x", lambda model, given: given.mul_(2.0))
    assert torch.equal(batch, BATCH)
