"""ICL score, slope over the logarithm of the position, and losses by position."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from phasewatch.detectors.types import Direction
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, RefusedError
from phasewatch.monitor.core.meaning import Meanings
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.isolation import measure_context
from phasewatch.monitor.observables.tokens.icl_score import DlossDlogToken, IclScore
from phasewatch.monitor.observables.tokens.positions import default_positions, log_spaced
from phasewatch.monitor.observables.tokens.token_loss import TokenLoss


class Given(nn.Module):
    """Its batch is its losses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def probe_token_losses(self, batch: torch.Tensor) -> torch.Tensor:
        return self.weight * batch


def context_of(*batches: torch.Tensor, **options):
    return measure_context(Given(), step=3, batches=batches, **options)


def random_losses(num: int, length: int) -> torch.Tensor:
    return torch.rand(num, length, generator=torch.Generator().manual_seed(num))


BATCHES = (random_losses(5, 16), random_losses(3, 16))


def by_hand(early: int, late: int) -> tuple[float, float]:
    """Mean difference over all sequences and its standard error, by loops."""
    found = [
        float(row[late - 1]) - float(row[early - 1]) for batch in BATCHES for row in batch.double()
    ]
    mean = sum(found) / len(found)
    variance = sum((one - mean) ** 2 for one in found) / (len(found) - 1)
    return mean, math.sqrt(variance / len(found))


@pytest.mark.parametrize("given", [{}, {"early": 3}, {"late": 10}, {"early": 3, "late": 10}])
def test_the_scores_are_those_of_a_loop_over_the_sequences(given) -> None:
    early, late = given.get("early", 1), given.get("late", 16)
    mean, stderr = by_hand(early, late)
    score, error = IclScore(**given).measure(context_of(*BATCHES))
    assert (score.name, score.unit, score.step) == (f"icl_score_{early}_{late}", "nats", 3)
    assert score.value == pytest.approx(mean, rel=1e-12)
    assert score.stderr is None  # exact on this probe: detectors must not take it for scatter
    assert error.name == f"{score.name}/stderr"
    assert error.value == pytest.approx(stderr, rel=1e-12)
    slope, error = DlossDlogToken(**given).measure(context_of(*BATCHES))
    assert slope.name == f"dloss_dlog_token_{early}_{late}"
    assert slope.value == pytest.approx(mean / math.log(late / early), rel=1e-12)
    assert error.value == pytest.approx(stderr / math.log(late / early), rel=1e-12)


def test_a_loss_that_is_a_power_law_of_the_position_in_its_logarithm_has_that_slope() -> None:
    losses = 5.0 - 0.3 * torch.arange(1, 513, dtype=torch.float64).log()
    slope, error = DlossDlogToken().measure(context_of(losses.expand(4, -1)))
    assert slope.value == pytest.approx(-0.3, rel=1e-6)
    assert error.value == pytest.approx(0.0, abs=1e-9)
    score, _ = IclScore().measure(context_of(losses.expand(4, -1)))
    assert score.value == pytest.approx(-0.3 * math.log(10.0), rel=1e-6)
    assert (score.name, slope.name) == ("icl_score", "dloss_dlog_token")  # the paper's positions


def test_short_contexts_keep_the_ratio_of_the_positions() -> None:
    assert default_positions(2048) == default_positions(500) == (50, 500)
    assert default_positions(200) == (20, 200)
    assert default_positions(12) == (1, 12)
    assert default_positions(2) == (1, 2)


def test_lower_is_better() -> None:
    for name in ("icl_score_1_16", "val_icl_score_1_16", "dloss_dlog_token_1_16"):
        meaning = Meanings().of(name)
        assert meaning.better is Direction.DOWN
        assert meaning.held_out is name.startswith("val_")


def test_losses_by_position_and_their_mean_are_those_of_a_loop() -> None:
    whole, error, *parts = TokenLoss().measure(context_of(*BATCHES))
    rows = torch.cat(BATCHES).double()
    per_sequence = [float(row.mean()) for row in rows]
    mean = sum(per_sequence) / 8
    assert whole.name == "token_loss"
    assert whole.value == pytest.approx(mean)
    spread = sum((one - mean) ** 2 for one in per_sequence) / 7
    assert (whole.stderr, error.name) == (None, "token_loss/stderr")
    assert error.value == pytest.approx(math.sqrt(spread / 8))
    assert [part.name for part in parts] == [f"token_loss/{p}" for p in log_spaced(16)]
    for part in parts:
        column = rows[:, int(part.name.rpartition("/")[2]) - 1]
        assert part.value == pytest.approx(float(column.mean()))
        assert part.stderr == pytest.approx(float(column.std()) / math.sqrt(8))


def test_positions_are_bounded_in_number_and_spread_over_the_logarithm() -> None:
    assert log_spaced(4) == [1, 2, 3, 4]
    found = log_spaced(2048)
    assert len(found) == 12
    assert (found[0], found[-1]) == (1, 2048)
    ratios = [b / a for a, b in pairwise(found[3:])]
    assert max(ratios) < 1.1 * min(ratios)


def test_positions_can_be_given() -> None:
    _, _, *parts = TokenLoss([2, 9]).measure(context_of(*BATCHES))
    assert [part.name for part in parts] == ["token_loss/2", "token_loss/9"]


def test_validation_data_is_told_by_the_name() -> None:
    context = context_of(BATCHES[0], val_batches=(BATCHES[1],))
    assert IclScore(validation=True).measure(context)[0].name == "val_icl_score_1_16"
    whole, *_ = TokenLoss(validation=True).measure(context)
    assert (whole.name, whole.value) == ("val_token_loss", pytest.approx(BATCHES[1].mean().item()))


@pytest.mark.parametrize("kind", [IclScore, DlossDlogToken])
def test_positions_that_make_no_sense_are_refused(kind) -> None:
    for wrong in ({"early": 0}, {"early": 5, "late": 5}, {"late": 1}):
        with pytest.raises(ConfigError, match="counted from 1"):
            kind(**wrong)
    for beyond in ({"late": 17}, {"early": 16}, {"early": 40}):
        with pytest.raises(RefusedError, match="the probe's sequences have 16"):
            kind(**beyond).check(context_of(*BATCHES))
    kind().check(context_of(*BATCHES))


def test_token_loss_refuses_positions_that_are_not_there() -> None:
    for wrong in ([], [0], list(range(1, 40))):
        with pytest.raises(ConfigError, match="positions"):
            TokenLoss(wrong)
    with pytest.raises(RefusedError, match="position 17; the probe's sequences have 16"):
        TokenLoss([17]).check(context_of(*BATCHES))


@pytest.mark.parametrize("kind", [IclScore, DlossDlogToken, TokenLoss])
def test_they_are_observables_that_say_what_they_look_for(kind) -> None:
    assert isinstance(kind(), Observable)
    assert kind.cost is Cost.FORWARD
    assert "2209.11895" in kind.source
    with pytest.raises(RefusedError, match=r"probe_token_losses\(batch\) on Linear"):
        kind().check(measure_context(nn.Linear(2, 2), step=0, batches=[torch.ones(3, 2)]))
    with pytest.raises(RefusedError, match="at least two sequences of two tokens"):
        kind().check(context_of(torch.ones(1, 16)))
