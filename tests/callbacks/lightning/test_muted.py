from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import nn

from phasewatch.callbacks.lightning.lent import Lent
from phasewatch.callbacks.lightning.losses import ProbeLoss, RefusingCollectives, takes_batch_idx
from phasewatch.callbacks.lightning.muted import Resettable
from phasewatch.callbacks.shared.views import NullObject
from phasewatch.monitor.config.measuring import SamplerConfig
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.work import run_through
from phasewatch.monitor.isolation import guard, measure_context
from phasewatch.monitor.observables.evaluation import at_weights
from phasewatch.monitor.run.probe_size import mean_loss
from phasewatch.monitor.sampling.examination import examine
from phasewatch.monitor.sampling.posing import pose
from phasewatch.monitor.sampling.terms import GIVEN_COUNT

BATCH = (torch.linspace(-1, 1, 6).reshape(3, 2), torch.tensor([0, 1, 0]))


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 2)

    def ce(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.ce(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Capture(pl.Callback):
    """Looks at the loss of a live fit in the middle of it."""

    def __init__(self, look):
        self.look = look
        self.result = None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with guard(module, seed=0) as report:
            self.result = self.look(trainer, module)
        self.repairs = report.repairs


def in_fit(module, look, **options):
    capture = Capture(look)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=options.pop("max_steps", 1),
        callbacks=[capture],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=options.pop("logger", False),
        **options,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        trainer.fit(module, torch.utils.data.DataLoader([(BATCH[0][0], BATCH[1][0])] * 4, 2))
    return capture


def survey(trainer, module, loss_fn=None, batches=(BATCH,)):
    loss = ProbeLoss(module, trainer, loss_fn)
    context = measure_context(
        module, step=1, batches=batches, n_samples=3, substitutes=loss.substitutes()
    )
    context = replace(context, loss_fn=loss.attach(context.model))
    terms, _ = loss.survey(context)
    return loss, context, terms


def value(module, **options):
    """The probe loss of a module, taken in the middle of its own training."""

    def look(trainer, live):
        _, context, _ = survey(trainer, live, **options)
        live_loss = Net.ce(live, BATCH).detach()
        return [
            at_weights(context, context.loss_fn, BATCH).item() for _ in range(2)
        ], live_loss.item()

    capture = in_fit(module, look)
    assert capture.repairs == []
    (first, second), live = capture.result
    assert first == second
    return first, live


pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_training_step_runs_on_the_copy_and_gives_the_live_loss():
    got, live = value(Net())
    assert got == pytest.approx(live, rel=1e-6)


class Loud(Net):
    def __init__(self):
        super().__init__()
        self.calls = 0
        self.kept = []

    def training_step(self, batch, batch_idx):
        loss = self.ce(batch)
        if getattr(self, "quiet", False):
            return loss
        self.log("x", loss)
        self.log_dict({"y": loss})
        self.print("said")
        if self.logger is not None:
            self.logger.log_metrics({"z": 1.0})
            self.logger.experiment.add_scalar("z", 1.0)
        self.trainer.should_stop = self.global_step > 100
        self.calls += 1
        self.kept.append(loss)
        assert self.trainer.max_steps == 1
        assert self.optimizers().param_groups[0]["lr"] == 0.5
        return {"loss": loss, "other": 1}


def test_nothing_that_a_step_says_reaches_the_trainer(capsys):
    module = Loud()
    before = {}

    def look(trainer, live):
        before.update(calls=live.calls, stop=trainer.should_stop)
        capsys.readouterr()
        _, context, _ = survey(trainer, live)
        at_weights(context, context.loss_fn, BATCH)
        assert context.model.calls == live.calls
        return capsys.readouterr().out, dict(trainer.callback_metrics)

    capture = in_fit(module, look)
    out, metrics = capture.result
    assert out == ""
    assert set(metrics) == {"x", "y"}
    assert capture.repairs == []
    assert module.calls == before["calls"]
    assert len(module.kept) == before["calls"]


class Manual(Net):
    def __init__(self, losses=1, scale=1.0):
        super().__init__()
        self.automatic_optimization = False
        self.losses, self.scale = losses, scale

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for i in range(self.losses):
            loss = self.ce(batch) * self.scale**i
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, 1.0)
            optimizer.step()


def test_manual_optimization_gives_the_loss_it_would_descend():
    got, live = value(Manual())
    assert got == pytest.approx(live, rel=1e-6)


def test_the_same_loss_twice_is_one_loss_and_two_different_ones_need_the_user():
    assert value(Manual(losses=2))[0] > 0
    with pytest.raises(RefusedError, match=r"2 different losses.*loss_fn="):
        value(Manual(losses=2, scale=3.0))


class Odd(Net):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def training_step(self, batch, batch_idx):
        loss = self.ce(batch)
        return loss if self.trainer.global_step < 1 else self.answer(self, batch, loss)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda s, b, loss: None, "gave no loss"),
        (lambda s, b, loss: "text", "gave a str"),
        (lambda s, b, loss: torch.ones(2, 2), r"shape \(2, 2\)"),
        (lambda s, b, loss: s.trainer.fit_loop.run(), r"trainer\.fit_loop\.run.*loss_fn="),
        (lambda s, b, loss: s.trainer.strategy.teardown(), r"trainer\.strategy\.teardown"),
        (lambda s, b, loss: s.trainer.train_dataloader.dataset[0], r"items of .*dataset"),
        (lambda s, b, loss: s.trainer.callbacks[0].look(1), r"Capture\.look"),
        (lambda s, b, loss: s.backward(loss), r"self\.backward"),
        (lambda s, b, loss: s.optimizers().state_dict(), r"optimizer\.state_dict"),
        (lambda s, b, loss: 1 / 0, "ZeroDivisionError"),
        (lambda s, b, loss: len(list(s.trainer.train_dataloader)), "iterates over a loader"),
    ],
)
def test_what_gives_no_safe_loss_is_refused_with_its_reason(answer, reason):
    with pytest.raises(RefusedError, match=reason):
        value(Odd(answer))


def test_a_missing_attribute_of_the_trainer_is_missing_on_the_view_too():
    def look(trainer, live):
        view = Lent(trainer).trainer
        return hasattr(view, "no_such_thing"), len(view.train_dataloader), view.world_size

    assert in_fit(Net(), look).result == (False, 2, 1)


class WithProbeLoss(Net):
    def probe_loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")


def test_the_loss_comes_from_the_first_place_that_has_one():
    def look(trainer, live):
        a = survey(trainer, live, loss_fn=lambda model, batch: model.net(batch[0]).sum())
        b = survey(trainer, live)
        return [(x[0].source, x[2]) for x in (a, b)]

    assert in_fit(WithProbeLoss(), look).result == [("loss_fn", 3), ("probe_loss", 3)]


def test_per_sample_losses_count_the_terms():
    def look(trainer, live):
        def tokens(model, batch):
            return torch.cat([model.net(batch[0]).flatten()] * 2)

        return survey(trainer, live, loss_fn=tokens, batches=(BATCH, BATCH))[2]

    assert in_fit(Net(), look).result == 24


def test_a_sum_and_a_count_are_their_mean_and_count_the_terms():
    def pair(model, batch):
        losses = model.net(batch[0]).square().flatten()
        return losses.sum(), len(losses)

    def look(trainer, live):
        _, context, terms = survey(trainer, live, loss_fn=pair, batches=(BATCH, BATCH))
        expected = live.net(BATCH[0]).square().mean().item()
        return terms, mean_loss(context, BATCH), expected, pose(context)

    terms, mean, expected, problem = in_fit(Net(), look).result
    assert mean == pytest.approx(expected)
    assert sum(problem.weights) == pytest.approx(1.0)
    assert problem.count is GIVEN_COUNT
    assert terms == 2 * BATCH[0].shape[0] * 2


class Mutating(Net):
    def training_step(self, batch, batch_idx):
        batch[0].add_(1.0)
        return self.ce(batch)


def test_a_step_that_changes_its_batch_gets_a_copy_each_time():
    x = BATCH[0].clone()
    value(Mutating())
    assert torch.equal(BATCH[0], x)


class Noisy(Net):
    def training_step(self, batch, batch_idx):
        return self.ce((batch[0] + torch.randn_like(batch[0]), batch[1]))


def test_a_noisy_step_is_given_the_same_noise_each_time():
    first, _ = value(Noisy())
    assert first > 0


def test_a_step_that_draws_is_seen_unfrozen_by_the_chains():
    def look(trainer, live):
        _, context, _ = survey(trainer, live)
        return run_through(examine(context, SamplerConfig())).noise

    assert in_fit(Noisy(), look).result == "averaged"
    assert in_fit(Net(), look).result == ""


class WithMetric(Net):
    def __init__(self, used=False):
        super().__init__()
        self.accuracy = torchmetrics.MeanMetric()
        self.used = used

    def training_step(self, batch, batch_idx):
        loss = self.ce(batch)
        seen = self.accuracy(loss.detach())
        self.log("acc", self.accuracy)
        return loss + seen if self.used else loss


def test_metrics_the_loss_does_not_need_are_not_computed_and_others_are():
    def look(trainer, live):
        loss, context, _ = survey(trainer, live)
        fresh = measure_context(live, step=1, substitutes=loss.substitutes())
        updates = live.accuracy.update_count
        at_weights(context, context.loss_fn, BATCH)
        return loss._mutes_metrics, context.model.accuracy.update_count == updates, fresh

    assert in_fit(WithMetric(), look).result[:2] == (True, True)
    assert in_fit(WithMetric(used=True), look).result[:2] == (False, True)


def test_attributes_of_a_copy_are_put_back_after_each_evaluation():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(1, 1)
            self.count, self.seen, self.by_name = 0, [1], {"a": 1}

    module = Keeps()
    resettable = Resettable(module)
    module.count, module.extra = 5, 1
    module.seen.append(2)
    module.by_name["a"] = 7
    resettable.restore()
    assert (module.count, module.seen, module.by_name) == (0, [1], {"a": 1})
    assert not hasattr(module, "extra")
    assert module.inner.weight is not None


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (lambda self, batch: None, False),
        (lambda self, batch, batch_idx: None, True),
        (lambda self, batch, index: None, True),
        (lambda self, *args: None, True),
    ],
)
def test_the_batch_index_is_passed_by_lightnings_rule(step, wanted):
    assert takes_batch_idx(type("M", (), {"training_step": step})()) is wanted


def test_a_step_that_takes_the_iterator_is_refused():
    def step(self, dataloader_iter):
        return None

    with pytest.raises(RefusedError, match="iterator"):
        takes_batch_idx(type("M", (), {"training_step": step})())


def test_a_sink_takes_anything():
    with NullObject().experiment.run() as run:
        run.log(1)
    assert list(NullObject()) == []


def test_communication_between_processes_is_refused_before_it_begins(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        value = torch.ones(2)
        with pytest.raises(RefusedError, match="communicates"), RefusingCollectives():
            dist.all_reduce(value)
        dist.all_reduce(value)
    finally:
        dist.destroy_process_group()
