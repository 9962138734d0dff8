"""A wrong argument is named with its class and the nearest that exists."""

import inspect

import pytest

from phasewatch import TransitionMonitor, Watch
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError


@pytest.mark.parametrize(
    ("make", "name", "nearest"),
    [
        (TransitionMonitor, "every_n_step", "every_n_steps"),
        (TransitionMonitor, "observable", "observables"),
        (Watch, "loss", "loss_fn"),
    ],
)
def test_a_class_names_itself_and_the_nearest_argument(make, name, nearest):
    with pytest.raises(TypeError) as raised:
        make(**{name: 5})
    said = str(raised.value)
    assert said.startswith(f"{make.__name__} has no argument {name!r} (did you mean ")
    assert repr(nearest) in said


def test_where_nothing_is_near_all_are_named():
    with pytest.raises(TypeError, match="has no argument 'zzz'; it has: config, run_name, "):
        TransitionMonitor(zzz=1)


def test_the_signature_stays_visible():
    assert "every_n_steps" in inspect.signature(TransitionMonitor).parameters


def test_a_key_of_the_configuration_and_a_name_have_their_nearest():
    with pytest.raises(ConfigError, match=r"every_n_step: unknown key \(did you mean 'every_n_st"):
        MonitorConfig.load({"every_n_step": 5})
    assert "did you mean 'llc'?" in str(UnknownNameError("observable", "lcc", ["llc", "basin"]))
