"""Monitors for tests, and observables that misbehave at a chosen moment."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor import MonitorConfig
from phasewatch.monitor.core.context import MeasureContext
from phasewatch.monitor.core.estimates import Observation
from phasewatch.monitor.core.work import Cost

NORMS = ("gradient_norm", "weight_norm", "update_ratio")


def make_monitor(folder: Path, *, sampler: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """A monitor that measures often and cheaply, and serves nothing.

    Chains run in a loop unless `sampler` says otherwise: choosing an engine takes a while.
    """
    config = MonitorConfig.load(
        {
            "store": str(folder / "store.db"),
            "exporter": {"enabled": False},
            "sampler": {"num_chains": 2, "num_draws": 8, "max_draws": 8, "engine": "loop"}
            | dict(sampler or {}),
            "probe": {"num_samples": 16, **options.pop("probe_config", {})},
        }
    )
    options = {"every_n_steps": 2, "run_name": "watched"} | options
    return TransitionMonitor(config, **options)


def stop_at(pl: Any, step: int, error: type[BaseException] = KeyboardInterrupt) -> Any:
    """A callback that raises at the end of the batch that completes `step`."""

    class Stop(pl.callbacks.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step >= step:
                raise error(f"stopped on purpose at step {step}")

    return Stop()


class _Loss(nn.Module):
    """Gives loss and gradient: checkpointed parts run again while the given weights are there."""

    def __init__(self, model, loss_fn):
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch, leaves):
        loss = self.loss_fn(self.model, batch).mean()
        if not leaves or not loss.requires_grad:
            return loss, ()
        return loss, torch.autograd.grad(loss, leaves, allow_unused=True)


def probe_loss_and_gradient(
    context: MeasureContext, params: Mapping[str, torch.Tensor], *, gradient: bool = True
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The probe loss at `params`, and its gradient, as any user's observable would take them."""
    dtypes = {name: p.dtype for name, p in context.model.named_parameters()}
    given = {name: value.to(dtypes.get(name, value.dtype)) for name, value in params.items()}
    values = {f"model.{name}": value for name, value in {**context.buffers, **given}.items()}
    leaves = list(params.values()) if gradient else []
    wrapper = _Loss(context.model, context.loss_fn)
    return torch.func.functional_call(wrapper, values, (context.batches[0], leaves))


def misbehave(context: MeasureContext) -> None:
    """Touch everything global that a careless measurement touches."""
    torch.randn(3)
    np.random.rand(3)  # noqa: NPY002
    random.random()
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    for value in (*context.params.values(), *context.buffers.values()):
        value.zero_()


class Rude:
    """Misbehaves, then raises `error` at the chosen moment, if one is given.

    Args:
        moment: "early": before anything else; "middle": between the loss and its gradient;
            "late": after the gradient; "never".
        error: What is raised.
        from_step: First step at which it raises.
    """

    name = "rude"
    unit = "1"
    cost = Cost.GRADIENT

    def __init__(self, moment="never", error: type[BaseException] = RuntimeError, from_step=0):
        self.moment = moment
        self.error = error
        self.from_step = from_step
        self.reached: list[str] = []
        self.steps: list[int] = []

    def measure(self, context):
        self.steps.append(context.step)
        self._reach("early", context)
        value = 1.0
        if context.loss_fn is None:
            self._reach("middle", context)
        else:
            params = {n: p.detach().clone().requires_grad_() for n, p in context.params.items()}
            probe_loss_and_gradient(context, params, gradient=False)
            self._reach("middle", context)
            value = float(probe_loss_and_gradient(context, params)[0].detach())
        self._reach("late", context)
        misbehave(context)
        return Observation(name=self.name, step=context.step, value=value)

    def _reach(self, moment, context):
        self.reached.append(moment)
        if moment == self.moment and context.step >= self.from_step:
            misbehave(context)
            raise self.error(f"raised on purpose, {moment}, at step {context.step}")
