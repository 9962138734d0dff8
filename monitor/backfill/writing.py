"""The one who writes: what a run has and lacks, what was measured, what detection says of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from phasewatch.monitor.backfill.checkpoints import Checkpoint
from phasewatch.monitor.backfill.measuring import Measured, Plan, asked_for
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.ending import RunState
from phasewatch.monitor.core.errors import ConfigError, StoreError
from phasewatch.monitor.core.transitions import Transition, TransitionStatus
from phasewatch.monitor.replay.recorded import Verdict, compare, replay
from phasewatch.monitor.store.store import RunInfo, Store

MARK = "backfilled"
"""Entry in the configuration of a run that was made by a backfill alone."""


def known_run(store: Store, name: str) -> RunInfo | None:
    """The run of exactly this name or id; None if there is none.

    Args:
        store: Where the history is.
        name: Its name or id. What only begins so is another run.

    Raises:
        ConfigError: It is being written.
    """
    try:
        run = store.run(name)
    except StoreError:
        return None
    if name not in (run.name, run.id):
        return None
    if run.state is RunState.RUNNING:
        raise ConfigError(
            f"run {run.name!r} is being written by process {run.pid} on {run.host}; wait until it "
            "has ended, or give --run another name"
        )
    return run


class Writing:
    """Writes what was measured into one attempt of a run.

    Args:
        store: Where the history is.
        name: Name of the run, where there is none yet.
        plan: What is measured, as workers have it.
        run: The run; None makes one.

    Attributes:
        run_id: Identity of the run; empty before one was made.
    """

    def __init__(self, store: Store, name: str, plan: Plan, run: RunInfo | None) -> None:
        self._store = store
        self._name = name
        self._run = run
        self._config = MonitorConfig.load(plan.config)
        self._attempt = 0
        self.run_id = run.id if run else ""

    def lacking(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The checkpoints at which something that is asked for was not observed."""
        if not self.run_id:
            return list(checkpoints)
        streams = self._store.names(self.run_id)
        observed: list[set[int]] = []
        for asked in asked_for(self._config):
            own = [self._store.history(self.run_id, s)[0] for s in streams if asked.owns(s)]
            observed.append({int(step) for steps in own for step in steps})
        known = set.intersection(*observed) if observed else set()
        return [checkpoint for checkpoint in checkpoints if checkpoint.step not in known]

    def refuse_gaps(self, some_known: bool, one_row: bool) -> None:
        """Refuse observables that remember, where they would not see the checkpoints in one row.

        Raises:
            ConfigError: Names the observable.
        """
        for name in self.remembering:
            if some_known or not one_row:
                raise ConfigError(
                    f"observable {name!r} compares a checkpoint with those before it; measure it "
                    "with --jobs 1, in one block, into a run that has nothing of these checkpoints "
                    "yet"
                )

    @property
    def remembering(self) -> list[str]:
        """Names of the observables whose values depend on the checkpoints before."""
        return [asked.name for asked in asked_for(self._config) if asked.remembers]

    def begin(self) -> str:
        """Enter the run, or another attempt of it; its identity."""
        kept = self._config.model_dump(mode="json")
        run = self._run
        if run is None:
            begun = self._store.begin_run(name=self._name, config={**kept, MARK: True})
        else:
            begun = self._store.begin_run(
                name=run.name, run_id=run.id, attempt=run.attempt + 1, config=run.config
            )
        self.run_id, self._attempt = begun
        return self.run_id

    def add(self, measured: Measured) -> None:
        """Write what one checkpoint gave, and wait until it is kept."""
        for observation in measured.observations:
            timed = replace(observation, timestamp=observation.timestamp or time.time())
            self._store.add_observation(self.run_id, self._attempt, timed)
        self._store.flush()

    def detect(self, *, is_over: bool = True) -> list[Transition]:
        """Detect over the whole run in step order, and keep what was found.

        What a live run has said itself stays as it said it; of what only backfills have said, what
        no longer shows is withdrawn.

        Args:
            is_over: Whether this is the last word. Before it, what is not settled stays so.

        Returns:
            The transitions of the run.
        """
        store = self._store
        run = store.run(self.run_id)
        before = store.transitions(self.run_id)
        found = list(replay(store, run, is_over=is_over).transitions)
        is_own = bool((run.config or {}).get(MARK))
        for pair in compare(before, found):
            stored, now = pair.stored, pair.found
            may_change = is_own or (stored is not None and stored.attempt == self._attempt)
            if now is None:
                # What was seen in hindsight alone shows again when somebody looks back.
                shows_later = not is_over and stored is not None and stored.hindsight is not None
                if stored is not None and may_change and not shows_later:
                    self._say(replace(stored, status=TransitionStatus.WITHDRAWN))
                continue
            looked_back = is_over and stored is not None and stored.hindsight != now.hindsight
            is_news = pair.verdict is not Verdict.SAME or looked_back
            if pair.verdict is Verdict.NEW or (may_change and is_news):
                self._say(now)
        store.flush()
        return store.transitions(self.run_id)

    def _say(self, transition: Transition) -> None:
        self._store.add_transition(transition, attempt=self._attempt)

    def end(self, state: RunState, reason: str = "") -> None:
        """Say how the attempt ended."""
        self._store.end_run(self.run_id, self._attempt, state, reason)
