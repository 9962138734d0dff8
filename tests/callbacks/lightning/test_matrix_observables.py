"""Every observable on a model it fits: training stays equal bit for bit, and it costs what it says.

The cases come from `support/cases`; a test holds that no observable is without one.
"""

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.data import DataLoader

from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables import BUILTIN, catalogue, create
from phasewatch.monitor.observables.evaluation import at_weights
from support.bitwise import differences
from support.observable_cases import every_case
from support.observers import make_monitor
from support.training import record

CASES = every_case()
COSTS = {entry.name: entry.cost for entry in catalogue()}
EVERY = 3
PARAMETERS = [pytest.param(case, id=case.name) for case in CASES]


def train(case, folder, monitors=list):
    return record(
        lambda: case.module(0),
        lambda: {
            "train_dataloaders": DataLoader(case.dataset(0), batch_size=8, shuffle=True),
        },
        folder,
        monitors=monitors,
        max_epochs=-1,
        max_steps=3 * EVERY,
    )


@functools.cache
def unmonitored(module, dataset):
    """The same for all cases that train the same."""
    with tempfile.TemporaryDirectory() as folder:
        return train(SimpleNamespace(module=module, dataset=dataset), Path(folder))


def test_every_observable_has_a_case():
    assert sorted({case.name for case in CASES}) == sorted(BUILTIN)


class Counted:
    """Counts what the measurements of an observable take, in evaluations of the whole probe.

    How many samples or tokens a pass sees is told by the output of the module that the loss calls
    first. A gradient counts as much as the pass before it.
    """

    def __init__(self, observable):
        self.observable = observable
        self.forwards = []
        self.gradients = []
        self.calls = []  # of gradients, whatever their size
        self.predicted = []

    def __getattr__(self, name):
        return getattr(self.observable, name)

    def measure(self, context):
        if hasattr(self.observable, "work"):
            self.predicted.append(self.observable.work(context))
        first, whole = of_the_probe(context)
        forwards, gradients, calls = [0.0], [0.0], [0]
        latest = [0.0]
        real_grad, real_backward = torch.autograd.grad, torch.Tensor.backward

        def called(module, _, output):
            if module is first:
                latest[0] = output.numel() / whole
                forwards[0] += latest[0]

        def grad(*arguments, **options):
            calls[0] += 1
            gradients[0] += latest[0]
            return real_grad(*arguments, **options)

        def backward(*arguments, **options):
            calls[0] += 1
            gradients[0] += latest[0]
            return real_backward(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", grad)
            patch.setattr(torch.Tensor, "backward", backward)
            hook = register_module_forward_hook(called)
            try:
                return self.observable.measure(context)
            finally:
                hook.remove()
                self.forwards.append(forwards[0])
                self.gradients.append(gradients[0])
                self.calls.append(calls[0])


def of_the_probe(context):
    """The module that the loss calls first, and the numbers it gives on the whole probe."""
    own = {module for module in context.model.modules() if not list(module.children())}
    seen = []

    def called(module, _, output):
        if module in own and isinstance(output, torch.Tensor):
            seen.append((module, output.numel()))

    hook = register_module_forward_hook(called)
    try:
        with torch.no_grad():
            for batch in context.batches:
                at_weights(context, context.loss_fn, batch)
    finally:
        hook.remove()
    first = seen[0][0]
    return first, sum(numbers for module, numbers in seen if module is first)


def assert_within_a_factor_of_two(measured, predicted):
    for one, said in zip(measured, predicted, strict=True):
        assert max(one, said) <= 2.0 * min(one, said) + 1e-9, (measured, predicted)


@pytest.mark.parametrize("case", PARAMETERS)
def test_training_is_not_touched_and_it_costs_no_more_than_it_says(case, tmp_path):
    made = []

    def monitors():
        inner = case.measured()
        if isinstance(inner, str):
            inner = create(inner, make_monitor(tmp_path).config)
        counted = Counted(inner)
        options = {"observables": [counted], "every_n_steps": EVERY}
        made.extend([counted, make_monitor(tmp_path, **(options | dict(case.monitor)))])
        return made[1:]

    watched = train(case, tmp_path, monitors)
    counted, monitor = made
    assert differences(unmonitored(case.module, case.dataset), watched) == []
    health = monitor.watch.health
    assert health.measurements[case.name] >= 2, health
    assert health.measurement_failures.total() == 0, health
    assert health.repairs == 0, health
    for stream in case.streams:
        steps, values, _ = monitor.history(stream, include_unconverged=True)
        assert len(steps) >= 2, stream
        assert np.isfinite(values).all(), stream

    cost = COSTS[case.name]
    if cost in (Cost.STEP, Cost.WEIGHTS):
        assert max(counted.forwards) == 0
        assert min(work.weight_passes for work in counted.predicted) > 0
    if cost in (Cost.STEP, Cost.WEIGHTS, Cost.FORWARD):
        assert max(counted.calls) == 0
    elif cost is Cost.GRADIENT:
        assert 0 < max(counted.calls) <= 100
    else:
        assert max(counted.calls) > 10
        return
    # A Hessian product is a forward pass and two backward passes.
    passes = [w.forwards + w.gradients + w.hessian_products for w in counted.predicted]
    assert_within_a_factor_of_two(counted.forwards, passes)
    gradients = [w.gradients + 2.0 * w.hessian_products for w in counted.predicted]
    assert_within_a_factor_of_two(counted.gradients, gradients)
