import pytest
import torch

from phasewatch.callbacks.lightning.steps import STUCK_BATCHES, StepLosses


def feed(steps, batches, accumulate=1):
    return [
        (step, None if loss is None else float(loss))
        for global_step, loss in batches
        for step, loss in steps.batch_ended(global_step, loss, accumulate)
    ]


def tensor(value):
    return torch.tensor(float(value))


def test_each_batch_is_a_step_without_accumulation():
    steps = StepLosses(0, manual=False)
    loss = tensor(3)
    assert list(steps.batch_ended(1, loss, 1)) == [(1, loss)]
    assert steps.is_one_batch_a_step


def test_micro_batches_give_one_mean_loss_a_step():
    # Lightning divides each by the number of micro-batches.
    steps = StepLosses(0, manual=False)
    assert feed(steps, [(0, tensor(1) / 2), (1, tensor(3) / 2)], 2) == [(1, 2.0)]


def test_a_window_cut_short_at_the_end_of_an_epoch_is_not_scaled_wrongly():
    steps = StepLosses(0, manual=False)
    batches = [(0, tensor(1) / 4), (0, tensor(2) / 4), (1, tensor(6) / 4)]
    assert feed(steps, batches, 4) == [(1, 3.0)]


def test_manual_losses_are_not_divided_and_several_optimizers_may_step_a_batch():
    steps = StepLosses(0, manual=True)
    assert feed(steps, [(2, tensor(1)), (4, tensor(2))], 8) == [(2, 1.0), (4, 2.0)]


def test_a_skipped_step_has_no_loss_and_a_partly_skipped_one_the_mean_of_the_rest():
    steps = StepLosses(0, manual=False)
    assert feed(steps, [(1, None)]) == [(1, None)]
    assert feed(steps, [(1, None), (2, tensor(3) / 2)], 2) == [(2, 3.0)]


def test_a_count_that_never_moves_is_replaced_by_batches_and_said_once(caplog):
    steps = StepLosses(0, manual=True)
    seen = feed(steps, [(0, tensor(i)) for i in range(STUCK_BATCHES + 2)])
    assert seen == [(i + 1, float(i)) for i in range(STUCK_BATCHES + 2)]
    assert steps.counting
    assert caplog.text.count("global_step did not move") == 1


def test_long_accumulation_is_not_taken_for_a_stuck_count():
    steps = StepLosses(0, manual=False)
    assert feed(steps, [(0, tensor(1))] * 40, 64) == []
    assert not steps.counting


def test_counting_goes_on_after_a_resume():
    steps = StepLosses(7, manual=True, counting=True)
    assert feed(steps, [(0, tensor(1)), (0, None)]) == [(8, 1.0), (9, None)]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_step_is_that_of_the_trainer(accumulate):
    steps = StepLosses(10, manual=False)
    feed(steps, [(11, tensor(1))], accumulate)
    assert steps.step == 11
