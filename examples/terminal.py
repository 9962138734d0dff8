"""What the examples show in a terminal: a live view while training, a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from phasewatch.callbacks import TransitionMonitor
from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.transitions.classification import seen_by


class Progress(pl.Callback):
    """Where the run is, what was measured last and what was found.

    It is a sink as well: phasewatch hands it every observation and every change of a transition.

    Args:
        steps: Steps of the whole run.
        console: Where to write.
        shown: Whether to write at all.
    """

    def __init__(self, steps: int, console: Console, *, shown: bool) -> None:
        self.steps = steps
        self.console = console
        self.shown = shown
        self.monitor: TransitionMonitor | None = None
        self.metrics_url: str | None = None
        self.latest: dict[str, Observation] = {}
        self.found: dict[str, Transition] = {}
        self.started = time.monotonic()
        # A file or a pipe gets a line now and then instead of one that moves.
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    # The Sink protocol

    def emit(self, observation: Observation) -> None:
        """Keep the latest value of every stream."""
        self.latest[observation.name] = observation

    def notify(self, transition: Transition) -> None:
        """Keep every transition as it stands now."""
        self.found[transition.id] = transition

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is held open."""

    # The Lightning callback

    def on_train_start(self, *_: Any) -> None:
        """Begin to show."""
        self.started = time.monotonic()
        if self.monitor is not None and self.monitor.watch is not None:
            self.metrics_url = self.monitor.watch.metrics_url
        if not self.shown:
            return
        if self.metrics_url is not None:
            self.console.print(f"metrics are at {self.metrics_url} while this runs")
        if self.live is not None:
            self.live.start()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Move on."""
        step = trainer.global_step
        if not self.shown:
            return
        if self.live is not None and step % 10 == 0:
            self.live.update(Group(*self.lines(step)), refresh=True)
        elif self.live is None and step % max(1, self.steps // 20) == 0:
            self.console.print(*self.lines(step), sep="  ", soft_wrap=True)

    def on_train_end(self, *_: Any) -> None:
        """Leave the last view standing."""
        if self.shown and self.live is not None:
            self.live.stop()

    on_exception = on_train_end

    def lines(self, step: int) -> tuple[Text, Text]:
        """What is known now: numbers, and transitions."""
        bar = "━" * round(16 * step / self.steps)
        numbers = [
            f"[cyan]{bar:<16}[/]{step:>5}/{self.steps}",
            f"train {self._value('train_loss')}",
            f"val {self._value('val_loss')}",
            f"acc {self._value('val_accuracy')}",
            f"λ̂ {self._llc()}",
        ]
        seconds = f"[dim]{time.monotonic() - self.started:>3.0f} s[/]"
        return (
            Text.from_markup("  ".join(numbers), overflow="ellipsis"),
            Text.from_markup(f"{seconds}  {self._transitions()}", overflow="ellipsis"),
        )

    def _value(self, name: str) -> str:
        seen = self.latest.get(name)
        return "–      " if seen is None else f"[bold]{seen.value:<7.2g}[/]"

    def _llc(self) -> str:
        seen = self.latest.get("llc")
        if seen is None:
            return "–"
        error = "" if seen.stderr is None else f" ± {seen.stderr:.2g}"
        doubt = "" if seen.status is EstimateStatus.OK else f" [yellow]({seen.status})[/]"
        return f"[bold]{seen.value:.3g}[/]{error}{doubt}"

    def _transitions(self) -> str:
        standing = [t for t in self.found.values() if t.status is not TransitionStatus.WITHDRAWN]
        if not standing:
            return "[dim]no transition yet[/]"
        said = ", ".join(f"{t.kind} from step {t.onset_step} ({t.status})" for t in standing)
        return f"[bold green]{said}[/]"


def transition_table(transitions: Iterable[Transition]) -> Table:
    """The transitions that were found."""
    table = Table(title="Transitions", title_justify="left")
    for column in ("kind", "status", "onset", "detected", "end", "severity", "evidence"):
        table.add_column(column)
    for t in transitions:
        table.add_row(
            str(t.kind),
            str(t.status),
            str(t.onset_step),
            str(t.detected_step),
            "–" if t.end_step is None else str(t.end_step),
            f"{t.severity:.2f}",
            seen_by(t),
        )
    if not table.row_count:
        table.add_row("[dim]none[/]")
    return table
