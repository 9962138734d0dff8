"""The configuration: unknown keys, wrong values, YAML, and what overrides what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phasewatch.monitor.config.measuring import ObservableConfig
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.config.schedule import EveryNSteps, LogSpaced
from phasewatch.monitor.core.errors import ConfigError


def test_an_unknown_key_is_named_beside_the_known_ones() -> None:
    told = r"overhed: unknown key \(did you mean 'overhead'\?\); known here: "
    with pytest.raises(ConfigError, match=told):
        MonitorConfig.load({"overhed": 0.1})


def test_an_unknown_key_inside_is_named_with_its_path() -> None:
    with pytest.raises(
        ConfigError,
        match=r"observables\.llc\.every: unknown key; known here: every_n_steps, parameters, sch",
    ):
        MonitorConfig.load({"observables": {"llc": {"every": 3}}})


def test_a_wrong_value_is_said_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"overhead: got 2; it must be less than or equal"):
        MonitorConfig.load({"overhead": 2})


def test_every_wrong_key_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        MonitorConfig.load({"overhead": 0, "sampler": {"num_chains": 0}, "seed": -1})
    for key in ("overhead", "sampler.num_chains", "seed"):
        assert f"  {key}: got" in str(caught.value)


def test_two_cadences_for_one_thing_are_refused() -> None:
    both = {"every_n_steps": 5, "schedule": {"kind": "log"}}
    with pytest.raises(ConfigError, match="every_n_steps or schedule, not both"):
        MonitorConfig.load(both)
    with pytest.raises(ConfigError, match="every_n_steps or schedule, not both"):
        MonitorConfig.load({"observables": {"llc": both}})


def test_yaml_is_read(tmp_path) -> None:
    path = tmp_path / "watch.yaml"
    path.write_text(
        "run_name: mine\nobservables: {llc: {every_n_steps: 50}, weight_norm: }\n"
        "schedule: {kind: log, per_decade: 10}\ndetectors: {val_loss: slope_shift}\n"
    )
    config = MonitorConfig.load(path)
    assert config.observables["llc"].cadence == EveryNSteps(n=50)
    assert config.observables["weight_norm"] == ObservableConfig()
    assert config.cadence == LogSpaced(per_decade=10)
    assert config.detectors["val_loss"].name == "slope_shift"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2", "is not YAML"), ("- 1\n", "holds a list"), ("overhead: x\n", "overhead: got 'x'")],
)
def test_a_bad_file_is_named(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        MonitorConfig.load(path)
    assert "bad.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        MonitorConfig.load(tmp_path / "none.yaml")


def test_an_empty_file_gives_the_defaults(tmp_path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert MonitorConfig.load(tmp_path / "empty.yaml") == MonitorConfig()


def test_a_list_of_observable_names_will_do() -> None:
    assert list(MonitorConfig.load({"observables": ["llc"]}).observables) == ["llc"]


def test_a_single_string_of_observables_is_refused() -> None:
    with pytest.raises(ConfigError, match="list of names"):
        MonitorConfig.load({"observables": "llc"})


def test_a_cadence_switches_the_budget_off_unless_one_is_given() -> None:
    assert MonitorConfig().budget == 0.05
    assert MonitorConfig(every_n_steps=10).budget == 1.0
    assert MonitorConfig(every_n_steps=10, overhead=0.1).budget == 0.1


def test_replace_checks_again_and_keeps_the_rest() -> None:
    config = MonitorConfig(seed=3).replace(overhead=0.2)
    assert (config.seed, config.overhead) == (3, 0.2)
    assert config.model_fields_set == {"seed", "overhead"}
    with pytest.raises(ConfigError, match="overhead: got -1"):
        config.replace(overhead=-1)


@given(
    st.builds(
        MonitorConfig,
        overhead=st.floats(0.001, 1.0),
        seed=st.integers(0, 2**31),
        every_n_steps=st.none() | st.integers(1, 10_000),
    )
)
def test_a_configuration_survives_the_way_through_json(config: MonitorConfig) -> None:
    assert MonitorConfig.model_validate_json(config.model_dump_json()) == config


def test_one_fault_is_one_line_and_several_are_a_line_each() -> None:
    with pytest.raises(ConfigError) as one:
        MonitorConfig.load({"seed": -1})
    assert str(one.value) == (
        "configuration is wrong: seed: got -1; it must be greater than or equal to 0"
    )
    with pytest.raises(ConfigError) as two:
        MonitorConfig.load({"seed": -1, "exporter": "x"})
    assert str(two.value).splitlines() == [
        "configuration is wrong:",
        "  exporter: got 'x'; it must be a mapping of settings",
        "  seed: got -1; it must be greater than or equal to 0",
    ]


@pytest.mark.parametrize("given", [5, ["store"], 1.5])
def test_what_is_no_configuration_is_said(given: object) -> None:
    with pytest.raises(ConfigError, match="give a MonitorConfig, a mapping, or the path"):
        MonitorConfig.load(given)  # type: ignore[arg-type]
