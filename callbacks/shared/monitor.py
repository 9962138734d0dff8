"""What the callbacks of all frameworks take and show: arguments, transitions, history."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from phasewatch.callbacks.shared.settings import settle_config
from phasewatch.detectors.base import Detector
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.config.exports import ExporterConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.core.arguments import named_arguments
from phasewatch.monitor.core.contracts import Observable, Sink
from phasewatch.monitor.core.errors import ConfigError, PhasewatchError
from phasewatch.monitor.core.history import History
from phasewatch.monitor.core.transitions import Transition
from phasewatch.monitor.run.watch import Watch

if TYPE_CHECKING:
    from phasewatch.monitor.reports.png import Picture

DISABLED = "PHASEWATCH_DISABLED"
"""Environment variable: "1" makes the callback do nothing at all."""


class MonitorBase:
    """A callback of any framework: its arguments, its watch and what it has found.

    Args and errors: see `phasewatch.callbacks.TransitionMonitor`.
    """

    @named_arguments
    def __init__(
        self,
        config: MonitorConfig | str | Path | None = None,
        *,
        run_name: str | None = None,
        observables: Literal["all"] | Sequence[str | Observable] | Mapping[str, Any] | None = None,
        detectors: Mapping[str, Detector | str | dict[str, Any]] | None = None,
        probe: Any = None,
        val_probe: Any = None,
        loss_fn: Callable[..., torch.Tensor] | None = None,
        n_samples: int | None = None,
        every_n_steps: int | None = None,
        schedule: EveryNSteps | LogSpaced | None = None,
        overhead: float | None = None,
        store: str | Path | None = None,
        exporter: ExporterConfig | bool | int | None = None,
        alerts: AlertsConfig | Sequence[str] | None = None,
        sinks: Sequence[Sink] | None = None,
        loggers: bool | None = None,
    ) -> None:
        super().__init__()
        if loss_fn is not None and not callable(loss_fn):
            raise ConfigError(
                f"loss_fn: got {loss_fn!r}; give a function loss_fn(model, batch) -> losses"
            )
        if n_samples is not None and n_samples < 1:
            raise ConfigError(f"n_samples: got {n_samples!r}; give a number of at least 1")
        self._config, self._observables, self._detectors = settle_config(
            config,
            observables=observables,
            detectors=detectors,
            run_name=run_name,
            every_n_steps=every_n_steps,
            schedule=schedule,
            overhead=overhead,
            store=store,
            exporter=exporter,
            alerts=alerts,
            loggers=loggers,
        )
        self._subject_settings = {
            "loss_fn": loss_fn,
            "probe": probe,
            "val_probe": val_probe,
            "n_samples": n_samples,
        }
        self._sinks = tuple(sinks or ())
        self._watch: Watch | None = None
        self._pending: dict[str, Any] = {}
        self._ended_at: int | None = None  # step at which `_pending` was left by a fit of ours

    # ---- what users read

    @property
    def config(self) -> MonitorConfig:
        """The configuration, with what the constructor was given."""
        return self._config

    @property
    def watch(self) -> Watch | None:
        """The running watch; None before a fit, on ranks other than 0, and when disabled."""
        return self._watch

    @property
    def transitions(self) -> list[Transition]:
        """Transitions found so far, in the order of their onset."""
        return self._watch.transitions if self._watch is not None else []

    def history(self, name: str, *, include_unconverged: bool = False) -> History:
        """Everything observed of one stream: steps, values, standard errors, each of shape (n,).

        Args:
            name: Stream name, for example "llc" or "train_loss".
            include_unconverged: Show also the values whose status is not OK, which are NaN else.
        """
        if self._watch is None:
            return History.empty(name)
        return self._watch.history(name, include_unconverged=include_unconverged)

    def plot(self) -> Picture:
        """Losses, λ̂ with its error, and transitions so far: a figure of matplotlib.

        A notebook shows it by itself; `plot().savefig("run.png")` writes it.

        Raises:
            PhasewatchError: Nothing has been watched yet.
        """
        if self._watch is None:
            raise PhasewatchError("plot: nothing has been watched yet; train with it first")
        return self._watch.plot()

    def __repr__(self) -> str:
        if self._watch is not None:
            return repr(self._watch).replace(type(self._watch).__name__, type(self).__name__, 1)
        name = "" if self._run_name is None else f" {self._run_name!r}"
        return f"<{type(self).__name__}{name}: not begun>"

    def _repr_html_(self) -> str:
        """What a notebook shows: state, latest λ̂ and transitions."""
        if self._watch is None:
            return f"<p>{html.escape(repr(self))}</p>"
        return self._watch._repr_html_()

    # ---- for the adapters

    @property
    def _run_name(self) -> str | None:
        return self._config.run_name

    def _is_disabled(self) -> bool:
        return os.environ.get(DISABLED) == "1"

    def _make_watch(
        self, root: Path, *, leaves_traces: bool = True, sinks: Sequence[Sink] = ()
    ) -> Watch:
        """The watch of a run.

        Args:
            root: Folder under which a relative store path lies.
            leaves_traces: Whether anything is to be kept and told; False for a rehearsal.
            sinks: Places of the framework's own that results go to.
        """
        config = self._config
        if not leaves_traces:
            config = config.replace(
                store="sqlite://",
                exporter={"enabled": False},
                alerts=(),
                checkpoint_on=None,
                notebook=False,
            )
        return Watch(
            config,
            observables=self._observables,
            detectors=self._detectors,
            sinks=(*sinks, *self._sinks),
            root=root,
        )

    def _refuse_twins(self, callbacks: Iterable[Any]) -> None:
        for other in callbacks:
            if other is self or not isinstance(other, MonitorBase):
                continue
            if other._run_name == self._run_name:
                raise ConfigError(
                    f"run_name: two monitors in one Trainer are both named {self._run_name!r}; "
                    "give each its own run_name"
                )
