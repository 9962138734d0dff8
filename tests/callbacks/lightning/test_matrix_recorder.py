"""The recorder behind the bitwise matrix: it must see what perturbs training, and nothing else."""

import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from support.bitwise import differences
from support.training import record_case
from support.zoo import DATA, KINDS, OPTIMIZATION, PRECISION, find

BASE = find("dropout and BatchNorm")


class _Perturb(pl.Callback):
    """Does one forbidden thing, once, after the third batch."""

    def __init__(self, act):
        self.act = act

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            self.act(trainer, module, batch)


def _touch_weights(trainer, module, batch):
    with torch.no_grad():
        module.net[0].weight[0, 0] += 1e-7


def _touch_optimizer(trainer, module, batch):
    state = trainer.optimizers[0].state[module.net[0].weight]
    state["exp_avg"].mul_(1 + 1e-6)


def _write_gradients(trainer, module, batch):
    module.loss(batch).backward()


def _add_attribute(trainer, module, batch):
    module.net[1].cached = 1


def _replace_parameter(trainer, module, batch):
    module.net[0].bias = torch.nn.Parameter(module.net[0].bias.detach() + 0)


def _leave_a_hook(trainer, module, batch):
    module.net.register_forward_hook(lambda *args: None)


def _unfreeze(trainer, module, batch):
    module.net[1].training = not module.net[1].training


PERTURBATIONS = {
    "draws from torch": lambda *_: torch.rand(1),
    "draws from numpy": lambda *_: np.random.rand(),  # noqa: NPY002
    "draws from random": lambda *_: random.random(),
    "iterates the loader": lambda trainer, *_: next(iter(trainer.train_dataloader)),
    "runs the live module": lambda trainer, module, batch: module(batch[0]),
    "changes a weight by 1e-7": _touch_weights,
    "changes optimizer state": _touch_optimizer,
    "writes gradients": _write_gradients,
    "changes a buffer": lambda trainer, module, batch: module.net[1].running_mean.add_(1e-7),
    "adds an attribute": _add_attribute,
    "replaces a parameter": _replace_parameter,
    "leaves a hook behind": _leave_a_hook,
    "flips a training flag": _unfreeze,
    "logs a metric": lambda trainer, module, batch: module.log("extra", 1.0),
    "writes to the logger": lambda trainer, *_: trainer.logger.log_metrics({"extra": 1.0}, 3),
    "changes the default dtype": lambda *_: torch.set_default_dtype(torch.float64),
    "turns anomaly detection on": lambda *_: torch.autograd.set_detect_anomaly(True),
    "stops the run": lambda trainer, *_: setattr(trainer, "should_stop", True),
    "changes the batch": lambda trainer, module, batch: batch[0].add_(1.0),
}


@pytest.fixture
def restored_modes():
    yield
    torch.set_default_dtype(torch.float32)
    torch.autograd.set_detect_anomaly(False)


def test_two_unmonitored_runs_are_equal(tmp_path):
    first, second = (record_case(BASE, tmp_path) for _ in range(2))
    assert differences(first, second) == []
    assert first.num_steps == 10
    assert len(first.final["logged"]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("case", [*KINDS, *PRECISION, *OPTIMIZATION, *DATA], ids=lambda c: c.name)
def test_every_case_of_the_zoo_repeats_itself(case, tmp_path):
    first, second = (record_case(case, tmp_path) for _ in range(2))
    assert differences(first, second) == []
    assert first.error is None
    assert len(first.events) > 10


QUICK = (
    "draws from torch",
    "iterates the loader",
    "changes a weight by 1e-7",
    "writes gradients",
    "changes a buffer",
    "adds an attribute",
    "logs a metric",
)


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(act, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, act in PERTURBATIONS.items()
    ],
)
def test_the_recorder_catches_a_callback_that(act, tmp_path, restored_modes):
    clean = record_case(BASE, tmp_path)
    touched = record_case(BASE, tmp_path, monitors=lambda: [_Perturb(act)])
    assert differences(clean, touched) != []


def test_the_first_difference_names_the_moment(tmp_path):
    clean = record_case(BASE, tmp_path)
    touched = record_case(
        BASE, tmp_path, monitors=lambda: [_Perturb(PERTURBATIONS["draws from numpy"])]
    )
    first = differences(clean, touched)[0]
    assert "on_train_batch_end: generators.numpy" in first


def test_case_names_are_unique():
    names = [case.name for case in (*KINDS, *PRECISION, *OPTIMIZATION, *DATA)]
    assert len(names) == len(set(names))
