"""`observables="all"` in a fit: what fits is measured, and training is not touched by all of it."""

import logging

import pytest
from torch.utils.data import DataLoader

from phasewatch.monitor.core.errors import ConfigError
from phasewatch.monitor.observables import selected
from support.bitwise import differences
from support.cases.norms import perceptron, points
from support.observers import make_monitor
from support.training import record

STEPS = 4


def train(folder, monitors=list, **options):
    return record(
        lambda: perceptron(0),
        lambda: {"train_dataloaders": DataLoader(points(0), batch_size=8, shuffle=True)},
        folder,
        monitors=monitors,
        max_epochs=-1,
        max_steps=STEPS,
        **options,
    )


def test_all_that_fit_are_measured_and_the_others_are_told(tmp_path, caplog):
    made = []

    def monitors():
        made.append(make_monitor(tmp_path, observables="all", every_n_steps=2))
        return made

    with caplog.at_level(logging.INFO, logger="phasewatch"):
        watched = train(tmp_path, monitors)
    assert differences(train(tmp_path), watched) == []
    health = made[0].watch.health
    assert health.measurement_failures.total() == 0, health
    measured = {name for name, count in health.measurements.items() if count == STEPS // 2}
    assert measured | set(health.skip_reasons) == set(selected("all")), health
    assert {"llc", "refined_llc", "weight_norm", "gradient_norm"} <= measured
    assert "val_probe" in health.skip_reasons["llc_validation"]
    told = [r for r in caplog.records if "is not measured: " in r.getMessage()]
    assert {r.levelno for r in told} == {logging.INFO}
    assert {r.getMessage().partition(" ")[0] for r in told} >= set(health.skip_reasons)


def test_a_name_given_beside_all_is_refused_before_the_first_step(tmp_path):
    def monitors():
        return [make_monitor(tmp_path, observables=["all", "llc_validation"])]

    with pytest.raises(ConfigError, match="'llc_validation' cannot be measured here"):
        train(tmp_path, monitors)
