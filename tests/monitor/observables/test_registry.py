"""The observables by name: how they are made, listed, and added to."""

import math

import pytest

from phasewatch.monitor import observables as registry
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core.contracts import Observable
from phasewatch.monitor.core.errors import ConfigError, UnknownNameError
from phasewatch.monitor.core.work import Cost
from phasewatch.monitor.observables import BUILTIN, catalogue, create, names, register, selected
from phasewatch.monitor.observables.llc.refined_llc import RefinedLLC


class Own:
    name, unit = "own", "1"

    def __init__(self, threshold, scale=1.0):
        self.threshold, self.scale = threshold, scale

    def measure(self, context):
        raise NotImplementedError


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register("own", Own)


def config_of(**parameters):
    return MonitorConfig.load({"observables": {"own": {"parameters": parameters}}})


@pytest.mark.parametrize("name", [e.name for e in catalogue() if not e.arguments])
def test_what_needs_no_arguments_is_made_by_its_name(name):
    made = create(name, MonitorConfig())
    assert isinstance(made, Observable)
    assert made.name == name


def test_what_a_configuration_gives_as_parameters_reaches_the_observable(registered):
    made = create("own", config_of(threshold=3, scale=0.5))
    assert (made.threshold, made.scale) == (3, 0.5)


def test_the_samplers_settings_reach_what_samples_and_parameters_come_beside_them():
    config = MonitorConfig.load(
        {
            "sampler": {"num_draws": 77},
            "observables": {"refined_llc": {"parameters": {"parts": {"first": ["net.0.*"]}}}},
        }
    )
    made = create("refined_llc", config)
    assert isinstance(made, RefinedLLC)
    assert made._config.num_draws == 77
    assert list(made._parts) == ["first"]


def test_a_factory_of_the_users_with_a_config_of_its_own_is_left_alone(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    register("theirs", lambda config="theirs": config)
    assert create("theirs", MonitorConfig()) == "theirs"


def test_a_missing_parameter_is_named_with_all_that_it_takes_and_where_to_give_it(registered):
    with pytest.raises(ConfigError) as caught:
        create("own", config_of(scale=2.0))
    assert str(caught.value) == (
        "observable 'own': missing a required argument: 'threshold'; it takes threshold, "
        "scale=1.0. Give them under observables.own.parameters, or pass the observable itself, "
        "made in your code"
    )


def test_an_unknown_parameter_is_named(registered):
    with pytest.raises(ConfigError, match="'own': got an unexpected keyword argument 'scael'"):
        create("own", config_of(threshold=3, scael=2))


def test_built_in_ones_name_what_they_lack_too():
    with pytest.raises(ConfigError, match=r"'llc_slices': missing a required argument: 'slices'"):
        create("llc_slices", MonitorConfig())


def test_an_unknown_name_is_told_with_the_known_ones_and_the_way_out():
    with pytest.raises(
        UnknownNameError, match=r"'lcc' .did you mean 'llc'.*; known: .*llc.*phasewatch.observables"
    ):
        create("lcc", MonitorConfig())


@pytest.mark.parametrize("name", ["llc", "own"])
def test_a_name_that_is_taken_cannot_be_registered(registered, name):
    with pytest.raises(ConfigError, match=f"observable '{name}' exists already"):
        register(name, Own)


def test_a_registered_one_is_among_the_names(registered):
    assert set(names()) >= {"own", *BUILTIN}
    assert names() == sorted(names())


def test_an_installed_package_adds_one_by_its_entry_point(monkeypatch):
    class EntryPoint:
        name = "packed"

        def load(self):
            return Own

    class EntryPoints(list):
        names = ("packed",)

    def found(*, group, name="packed"):
        assert group == "phasewatch.observables"
        return EntryPoints([EntryPoint()] if name == "packed" else [])

    monkeypatch.setattr(registry, "entry_points", found)
    config = MonitorConfig.load({"observables": {"packed": {"parameters": {"threshold": 1}}}})
    assert "packed" in names()
    assert create("packed", config).threshold == 1


def test_all_is_everything_that_can_be_made_without_arguments(registered):
    register("free", lambda scale=1.0, *more, **rest: None)
    chosen = selected("all")
    assert {"free", "llc", "llc_validation", "refined_llc", "weight_norm"} <= set(chosen)
    assert {"own", "llc_slices"}.isdisjoint(chosen)
    assert selected("weight_norm") == ["weight_norm"]
    assert selected("unheard of") == ["unheard of"], "what it stands for; `create` refuses it"


def test_the_catalogue_describes_every_built_in_one():
    entries = list(catalogue())
    assert [entry.name for entry in entries] == sorted(BUILTIN)
    for entry in entries:
        assert entry.unit, entry.name
        assert isinstance(entry.cost, Cost), entry.name
        assert len(entry.source) > 3, entry.name
        assert not entry.needs.endswith("."), entry.name
    by_name = {entry.name: entry for entry in entries}
    assert by_name["llc_slices"].arguments == ("slices",)
    assert by_name["llc"].arguments == ()


def test_the_table_of_costs_knows_every_built_in_one():
    lacking = {entry.name for entry in catalogue() if entry.measured is None}
    assert not lacking, (
        f"no costs are known of {', '.join(sorted(lacking))}; run: "
        f"make bench-observables, or: python tests/benchmarks/observables.py --write --only "
        f"{' '.join(sorted(lacking))}"
    )
    for entry in catalogue():
        spent = entry.measured
        columns = (spent.parameters, spent.cpu_seconds, spent.seconds, spent.passes, spent.bytes)
        assert [len(column) for column in columns] == [3] * 5, entry.name
        assert list(spent.parameters) == sorted(spent.parameters), entry.name
        for column in (spent.cpu_seconds, spent.seconds, spent.passes):
            assert all(0.0 < value < math.inf for value in column), entry.name
