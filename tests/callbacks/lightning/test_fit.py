import contextlib
import types

import pytest
import torch
from torch import nn

from phasewatch.callbacks import TransitionMonitor
from phasewatch.callbacks.lightning.fit import Fit
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import RefusedError
from phasewatch.monitor.core.health import Health
from phasewatch.monitor.run.failures import Failures


class FakeWatch:
    """Writes down what it is told; due at the steps it is given."""

    def __init__(self, due=()):
        self.config = MonitorConfig()
        self.health = Health()
        self.failures = Failures(self.health)
        self.has_budget = False
        self.due_steps = set(due)
        self.asked, self.observed, self.records, self.probed, self.refused = [], [], [], [], []
        self.fails = None

    def start(self, step, expected_steps):
        self.started = (step, expected_steps)

    def observe(self, step, scalars, epoch=None):
        self.observed.append((step, {name: float(value) for name, value in scalars.items()}))

    def due(self, step):
        self.asked.append(step)
        return step >= self.failures.resumes_at and step in self.due_steps

    def bound_turns(self, seconds):
        self.longest_turn = seconds

    def probe_growth(self, context, cost, step_seconds):
        return float("inf")

    def before_step(self, step, named_parameters):
        self.records.append((step, [name for name, _ in named_parameters]))

    def spending(self):
        return contextlib.nullcontext()

    def check(self, context, *, loss, step_seconds, cost):
        self.checked = context

    def refuse(self, reason):
        self.refused.append(reason)

    def probe(self, step, subject, epoch):
        with self.failures.surviving(step, backs_off=True), subject.guarded(step, 0):
            if self.fails:
                raise self.fails
            self.probed.append((step, subject.context(step, epoch)))


class FakeTrainer:
    """As much of a trainer as a fit looks at."""

    def __init__(self, module):
        data = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
        self.train_dataloader = torch.utils.data.DataLoader(data, 4)
        self.optimizers = [torch.optim.SGD(module.parameters(), 0.1)]
        self.strategy = types.SimpleNamespace(
            batch_to_device=lambda batch, dataloader_idx=0: batch, world_size=1
        )
        self.precision_plugin = types.SimpleNamespace(
            convert_input=lambda batch: batch, train_step_context=contextlib.nullcontext
        )
        self.loggers, self.callbacks, self.lr_scheduler_configs = [], [], []
        self.datamodule = self.val_dataloaders = None
        self.global_step = self.current_epoch = 0
        self.world_size = self.accumulate_grad_batches = 1
        self.log_every_n_steps = 50
        self.estimated_stepping_batches = 100


class Net(nn.Module):
    automatic_optimization = True

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def _on_before_batch_transfer(self, batch, dataloader_idx=0):
        return batch

    def probe_loss(self, batch):
        return (self.linear(batch[0]) - batch[1]).square().squeeze(1)


def make_fit(due=(), module=None, **settings):
    module = module or Net()
    trainer, watch = FakeTrainer(module), FakeWatch(due)
    fit = Fit(trainer, module, watch, settings)
    fit.start({})
    return fit, trainer, watch


def step(fit, trainer, loss=1.0):
    fit.before_step(trainer.optimizers[0])
    trainer.global_step += 1
    fit.batch_ended({"loss": torch.tensor(loss)}, None)


def test_a_step_with_nothing_due_asks_and_keeps_and_does_no_more(monkeypatch):
    fit, trainer, watch = make_fit()
    for name in ("_check", "_read_logged", "_observe", "_observe_losses"):
        monkeypatch.setattr(fit, name, None)
    fit._next_log = 50
    step(fit, trainer)
    step(fit, trainer, 2.0)
    assert watch.observed == [(1, {"train_loss": 1.0}), (2, {"train_loss": 2.0})]
    assert set(watch.asked) == {1, 2}
    assert watch.records == []


def test_a_due_step_is_recorded_before_and_measured_after_on_a_copy():
    fit, trainer, watch = make_fit(due=[2])
    for _ in range(3):
        step(fit, trainer)
    assert watch.records == [(2, ["linear.weight", "linear.bias"])]
    ((measured_step, context),) = watch.probed
    assert measured_step == context.step == 2
    assert context.model is not fit._module
    assert context.n_samples == 8
    assert context.n_data == 8


def test_the_hook_before_a_step_may_come_several_times():
    fit, trainer, watch = make_fit(due=[1])
    for _ in range(3):
        fit.before_step(trainer.optimizers[0])
    assert len(watch.records) == 1


def test_with_several_optimizers_only_the_stepping_ones_parameters_are_looked_at():
    fit, trainer, watch = make_fit(due=[1])
    trainer.optimizers = [torch.optim.SGD([fit._module.linear.bias], 0.1)] * 2
    fit.before_step(trainer.optimizers[0])
    assert watch.records == [(1, ["linear.bias"])]


def test_a_failure_is_counted_said_once_and_backed_off_from(caplog):
    fit, trainer, watch = make_fit(due=range(1, 100))
    watch.fails = ValueError("broken")
    for _ in range(20):
        step(fit, trainer)
    assert len(watch.observed) == 20
    assert watch.health.measurement_failures["monitor"] == 4  # at steps 1, 3, 7 and 15
    assert caplog.text.count("broken") == 1


def test_an_interrupt_is_not_held_back():
    fit, trainer, watch = make_fit(due=[1])
    watch.fails = KeyboardInterrupt()
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        step(fit, trainer)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.requires_grad for p in fit._module.parameters())


def test_a_sharded_module_is_not_measured_and_its_losses_are_observed():
    class DTensor(nn.Parameter):
        pass

    module = Net()
    module.linear.weight = DTensor(torch.zeros(1, 2))
    fit, trainer, watch = make_fit(due=[1], module=module)
    step(fit, trainer)
    assert "sharded" in watch.refused[0]
    assert watch.probed == watch.records == []
    assert len(watch.observed) == 1


def test_a_loss_that_cannot_be_had_is_explained_to_who_asks():
    class Broken(Net):
        def probe_loss(self, batch):
            raise ValueError("no such batch")

    fit, trainer, watch = make_fit(due=[1], module=Broken())
    with pytest.raises(RefusedError, match=r"no such batch.*loss_fn="):
        watch.checked.loss_fn(None, None)
    step(fit, trainer)
    assert watch.probed[0][1].loss_fn is None


def test_batches_are_taken_as_they_pass_where_the_loader_is_a_stream():
    module = Net()
    trainer, watch = FakeTrainer(module), FakeWatch([1, 2])
    trainer.train_dataloader = iter([])
    watch.config = MonitorConfig.load({"probe": {"num_samples": 6}})
    fit = Fit(trainer, module, watch, {})
    fit.start({})
    batch = [torch.ones(4, 2), torch.ones(4, 1)]
    assert fit.wants_batches
    fit.batch_passes(batch)
    step(fit, trainer)
    assert watch.probed == []
    batch[0].zero_()
    fit.batch_passes(batch)
    assert not fit.wants_batches
    step(fit, trainer)
    ((_, context),) = watch.probed
    assert context.n_samples == 8
    assert context.batches[0][0].sum() == 8
    again = Fit(trainer, module, watch, {})
    again.start(fit.state_dict())
    assert not again.wants_batches
    assert torch.equal(again._subject.context(2).batches[0][0], torch.ones(4, 2))


def test_a_stream_of_what_no_loss_can_take_ends_in_a_refusal_not_in_an_error():
    module = Net()
    trainer, watch = FakeTrainer(module), FakeWatch([1])
    trainer.train_dataloader = iter([])
    fit = Fit(trainer, module, watch, {})
    fit.start({})
    fit.batch_passes(["text"])
    assert not fit.wants_batches
    step(fit, trainer)
    assert watch.probed[0][1].loss_fn is None


def test_the_state_is_plain_and_read_with_weights_only(tmp_path):
    monitor = TransitionMonitor(run_name="x")
    state = {
        "watch": {"run_id": "1", "values": [1.0, float("nan")]},
        "step": 3,
        "counting": False,
        "probe": [[torch.ones(2)]],
    }
    given = dict(state)
    monitor.load_state_dict(given)
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["step"] == 3
    assert given == state
    assert monitor.watch is None  # nothing is opened by loading


def test_an_unstarted_monitor_has_an_empty_state_and_history():
    monitor = TransitionMonitor()
    assert monitor.state_dict() == {}
    assert monitor.transitions == []
    assert [len(column) for column in monitor.history("llc")] == [0, 0, 0]


def test_the_state_key_follows_the_run_name_and_not_what_is_tuned():
    assert TransitionMonitor().state_key == TransitionMonitor(every_n_steps=3).state_key
    assert TransitionMonitor(run_name="a").state_key != TransitionMonitor(run_name="b").state_key


@pytest.mark.parametrize("broken", ["finish", "state_dict"])
def test_a_failure_at_the_end_of_a_fit_is_counted_and_does_not_hide_trainings_own(broken, caplog):
    def fail(*args, **kwargs):
        raise OSError("disk gone")

    ended = []
    watch = types.SimpleNamespace(
        health=Health(),
        run_name="mine",
        state_dict=dict,
        finish=lambda state, reason: ended.append((state, reason)),
    )
    setattr(watch, broken, fail)
    monitor = TransitionMonitor()
    monitor._watch = watch
    monitor._fit = types.SimpleNamespace(state_dict=dict, global_step=7)
    monitor.on_exception(None, None, ValueError("training's own"))
    assert watch.health.measurement_failures["monitor"] == 1
    assert "run mine failed" in caplog.text
    assert "disk gone" in caplog.text
    assert ended == (
        [] if broken == "finish" else [(RunState.FAILED, "ValueError: training's own")]
    )
