import math
from pathlib import Path

import pytest

from phasewatch import detectors
from phasewatch.detectors import checks
from phasewatch.detectors.checks import CheckFailedError
from phasewatch.detectors.online.slope_shift import SlopeShift

ALL = checks.all_checks()


SHIPPED = (
    "abrupt_change", "bocpd", "cusum", "focus", "level_shift", "local_change", "page_hinkley",
    "ruptures_window", "slope_shift",
)  # fmt: skip


FORETELLING = {"precursor"}
"""These see no change: the check of one asks nothing of them."""


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_detector_passes_every_check(name, check):
    check(lambda: detectors.create(name))


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("name", sorted(FORETELLING))
def test_a_detector_that_foretells_passes_all_checks_but_those_of_a_change(name, check):
    if check in (
        checks.check_one_alarm_per_episode,
        checks.check_nonfinite_is_counted_and_survived,
    ):
        with pytest.raises(CheckFailedError, match=r"one change gave 0 alarms|it says \[\]"):
            check(lambda: detectors.create(name))
    else:
        check(lambda: detectors.create(name))


def test_the_list_above_holds_every_shipped_detector():
    kinds = {name: type(detectors.create(name)) for name in (*SHIPPED, *FORETELLING)}
    online = {path.stem for path in Path(detectors.__file__).parent.glob("online/[!_]*.py")}
    assert {kind.__module__.rsplit(".", 1)[1] for kind in kinds.values()} == online
    for name, kind in kinds.items():
        assert kind.name == name
        assert kind is getattr(detectors, kind.__name__)


def test_check_detector_runs_them_all():
    checks.check_detector(SlopeShift)
    with pytest.raises(CheckFailedError):
        checks.check_detector(AlwaysActive)


class AlarmsAlways(SlopeShift):
    def _judge(self, step, index, level):
        window = level.windows[0]
        if level.count < window.width + window.old:
            return None
        window.look(level)
        self._falling = {"level": 0, "width": 4, "peak": 1.0, "slow": 0}
        return self._alarm(step, level, window, 0.0, 1.0)


class AlwaysActive(SlopeShift):
    @property
    def active(self):
        return True


class Deaf(SlopeShift):
    def _judge(self, step, index, level):
        return None


class ForgetsToReset(SlopeShift):
    def reset(self):
        skipped = getattr(self, "_num_skipped", 0)
        super().reset()
        self._num_skipped = skipped


class LooksAhead(SlopeShift):
    """Stands for a detector whose alarms depend on how it is run."""

    runs = 0

    def __init__(self):
        super().__init__()
        type(self).runs += 1
        if self.runs % 2 == 0:
            self._gate = 5.0


class ChokesOnNan(SlopeShift):
    def _skip(self, step):
        return self._observe(step, 1.0, None)


class AlarmsAtEachNan(SlopeShift):
    def _skip(self, step):
        self._broken = False
        return super()._skip(step)


class FlickersWithItsStream(SlopeShift):
    """Ends an instability with the first finite value, and tells the next one again."""

    def _observe(self, step, value, stderr):
        self._broken = False
        self._longest_gap = 0
        return super()._observe(step, value, stderr)


class DiesOfNan(SlopeShift):
    """As river's PageHinkley: one NaN enters a running sum, and nothing is ever found again."""

    def _skip(self, step):
        self._dead = True
        return super()._skip(step)

    def _observe(self, step, value, stderr):
        return None if getattr(self, "_dead", False) else super()._observe(step, value, stderr)


class CannotLoad(SlopeShift):
    """As Lightning's SpikeDetection: what it saves is not what it loads."""

    def load_state_dict(self, state):
        self._last_step = state["running"]


class TellsEveryPoint(SlopeShift):
    """Says the alarm of its episode at each of its points: one change, a hundred messages."""

    def update(self, step, value, stderr=None):
        alarm = super().update(step, value, stderr)
        if alarm is not None:
            self._latest_alarm = alarm
        return alarm or (self._latest_alarm if self.active else None)


class TakesRepeatedSteps(SlopeShift):
    def update(self, step, value, stderr=None):
        self._last_step = None
        return super().update(step, value, stderr)


class Hoards(SlopeShift):
    def update(self, step, value, stderr=None):
        self.__dict__.setdefault("_all", []).append(value)
        return super().update(step, value, stderr)


class LosesState(SlopeShift):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._levels = []


class EatsItsInput(SlopeShift):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        state.clear()


class SharesItsState(SlopeShift):
    def _state(self):
        return self.__dict__.setdefault("_shared", {}) | super()._state() | {"log": self._log()}

    def _log(self):
        log = self.__dict__.setdefault("_steps_seen", [])
        log.append(self._count)
        return log

    def update(self, step, value, stderr=None):
        self._log()
        return super().update(step, value, stderr)


class CopiesBadly(SlopeShift):
    def __setstate__(self, state):
        self.__dict__.update(state)
        self._gate = 5.0

    def __deepcopy__(self, memo):
        return SlopeShift()


class ClaimsSymmetry(SlopeShift):
    symmetric = True


class ChangesItsParameters(SlopeShift):
    def update(self, step, value, stderr=None):
        self._parameters["gate"] = math.pi
        return super().update(step, value, stderr)


BROKEN = {
    "protocol": object,
    "quiet_on_constants": AlarmsAlways,
    "one_alarm_per_episode": Deaf,
    "reset_is_fresh": ForgetsToReset,
    "causal": LooksAhead,
    "nonfinite_is_counted_and_survived": ChokesOnNan,
    "nonfinite_run_is_one_instability": AlarmsAtEachNan,
    "one_condition_is_few_alarms": FlickersWithItsStream,
    "steps_must_increase": TakesRepeatedSteps,
    "bounded_memory": Hoards,
    "state_round_trip": LosesState,
    "state_is_a_snapshot": SharesItsState,
    "pickle_and_copy": CopiesBadly,
    "symmetric": ClaimsSymmetry,
    "parameters_are_frozen": ChangesItsParameters,
}


@pytest.mark.parametrize("name", BROKEN)
def test_every_check_can_fail(name):
    with pytest.raises(CheckFailedError):
        getattr(checks, f"check_{name}")(BROKEN[name])


def test_no_check_is_without_a_detector_that_fails_it():
    assert {f"check_{name}" for name in BROKEN} == {check.__name__ for check in ALL}


def test_a_state_that_is_eaten_fails_the_round_trip():
    with pytest.raises(CheckFailedError, match="changes the state it was given"):
        checks.check_state_round_trip(EatsItsInput)


@pytest.mark.parametrize(
    ("check", "broken", "said"),
    [
        ("nonfinite_is_counted_and_survived", DiesOfNan, "after single non-finite values"),
        ("state_round_trip", CannotLoad, "cannot load its own state"),
        ("one_alarm_per_episode", TellsEveryPoint, "one change gave"),
    ],
)
def test_what_detectors_elsewhere_do_wrong_is_caught(check, broken, said):
    with pytest.raises(CheckFailedError, match=said):
        getattr(checks, f"check_{check}")(broken)


def test_an_episode_that_never_ends_fails():
    with pytest.raises(CheckFailedError, match="has not ended"):
        checks.check_one_alarm_per_episode(AlwaysActive)


def test_a_detector_without_parameters_has_none_to_change():
    class Bare:
        def __init__(self):
            self.inner = SlopeShift()
            self.update = self.inner.update

    checks.check_parameters_are_frozen(Bare)
