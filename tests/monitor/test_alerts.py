"""Settings of direct alerts: targets by name, secrets hidden, quiet hours."""

from datetime import datetime

import pytest

from phasewatch.monitor.alerts import AlertsConfig, masked, quiet_seconds, resolve_targets
from phasewatch.monitor.config import MonitorConfig
from phasewatch.monitor.errors import ConfigError

SECRET = "T0KEN5ECRET"
URL = f"slack://{SECRET}/B/C"


def resolve(*urls, **settings):
    return resolve_targets(AlertsConfig(targets=urls, **settings))


def test_a_list_of_urls_is_a_configuration():
    config = MonitorConfig.load({"alerts": [URL]})
    assert config.alerts == AlertsConfig(targets=(URL,))
    assert MonitorConfig.load({"alerts": URL}).alerts == config.alerts
    assert MonitorConfig.load({"alerts": {"targets": [URL], "updates": True}}).alerts.updates
    assert MonitorConfig.load(None).alerts.targets == ()


def test_no_secret_is_shown_by_a_configuration():
    config = MonitorConfig.load({"alerts": [URL]})
    assert SECRET not in repr(config)
    assert SECRET not in str(config.model_dump(mode="json"))


@pytest.mark.parametrize(
    "alerts",
    [
        [URL, 3],
        {"targets": [URL], "max_per_hour": 0},
        {"targets": [URL], "other": URL},
        {"targets": {URL: 1}},
        {"targets": [URL], "quiet_hours": URL},
    ],
)
def test_an_error_about_alerts_shows_no_secret(alerts):
    with pytest.raises(ConfigError) as caught:
        MonitorConfig.load({"alerts": alerts})
    assert "alerts" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_target_is_named_by_position_service_and_digest():
    first, second = resolve(URL, "json://host/x")
    assert first.name.startswith("1-slack-")
    assert second.name.startswith("2-json-")
    assert SECRET not in repr(first)
    assert first.url == URL
    assert resolve(URL)[0].name == first.name
    assert resolve(URL + "D")[0].name != first.name


def test_the_same_target_twice_is_one_target():
    assert len(resolve(URL, URL)) == 1


def test_urls_come_from_the_environment_and_from_files(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_ALERTS", f"  {URL}\n\n# a remark\njson://host/a\n")
    path = tmp_path / "urls"
    path.write_text("json://host/b\n")
    targets = resolve("env:MY_ALERTS", f"file:{path}")
    assert [target.url for target in targets] == [URL, "json://host/a", "json://host/b"]


def test_what_is_missing_or_wrong_is_named_without_its_content(monkeypatch, tmp_path):
    monkeypatch.delenv("MY_ALERTS", raising=False)
    with pytest.raises(ConfigError, match="environment variable 'MY_ALERTS' is not set"):
        resolve("env:MY_ALERTS")
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(f"file:{tmp_path / 'none'}")
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="names no target"):
        resolve(f"file:{tmp_path / 'empty'}")
    with pytest.raises(ConfigError, match="target 2 is no URL") as caught:
        resolve(URL, SECRET)
    assert SECRET not in str(caught.value)


def test_a_mask_covers_every_part_of_a_url_and_leaves_the_service():
    url = "mailto://me:pa%24sword@mail.example.org?to=you@example.org"
    text = "mailto: pa$sword of me@mail.example.org (pa%24sword) refused for you@example.org"
    shown = masked(text, url)
    for secret in ("pa$sword", "pa%24sword", "example.org"):
        assert secret not in shown
    assert shown.startswith("mailto: ")
    assert "refused" in shown


@pytest.mark.parametrize(
    ("span", "at", "minutes"),
    [
        ("22:00-07:00", (23, 0), 480),
        ("22:00-07:00", (0, 0), 420),
        ("22:00-07:00", (7, 0), 0),
        ("22:00-07:00", (21, 59), 0),
        ("12:00-13:00", (12, 0), 60),
        ("12:00-13:00", (13, 0), 0),
        (None, (3, 0), 0),
    ],
)
def test_quiet_hours_may_go_over_midnight(span, at, minutes):
    assert quiet_seconds(span, datetime(2024, 5, 1, *at)) == 60 * minutes


@pytest.mark.parametrize("wrong", ["22-07", "24:00-07:00", "22:00", "22:00-07:60"])
def test_quiet_hours_are_checked(wrong):
    with pytest.raises(ConfigError, match="quiet_hours"):
        MonitorConfig.load({"alerts": {"quiet_hours": wrong}})
