"""No text that leaves holds a secret, and addresses are checked before anything is written."""

import logging
import re
import urllib.request
from pathlib import Path

import pytest
import torch

import phasewatch.monitor
from phasewatch.monitor.config.monitor import MonitorConfig
from phasewatch.monitor.core import redaction
from phasewatch.monitor.core.errors import ConfigError, StoreError
from phasewatch.monitor.core.redaction import add_secret, get_logger, redact, redacted
from phasewatch.monitor.core.transitions import TransitionStatus
from phasewatch.monitor.core.urls import web_address
from phasewatch.monitor.run.watch import Watch
from phasewatch.monitor.store.store import Store
from support.records import make_transition
from support.strangers import stranger
from support.targets import http_target

S = "SECRETPW9"


@pytest.fixture(autouse=True)
def _forget():
    yield
    redaction._known.clear()


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://u:{S}@h/db",
        f"postgres://u:p@ss/{S}@h:5432x/db",
        f"postgresql//u:{S}@h/db",
        f"http://h/?token={S}",
        f"http://h/?a=b&api_key={S}&c=d",
        f"http://h/?PASSWORD={S}",
        f"could not connect to 'https://{S}@h/path' (refused)",
        f"Authorization: Basic {S}abcdef",
        f"bearer {S}abcdef",
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text):
    assert S not in redact(text)


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_what_is_no_secret_of_a_url_stays(slashes):
    assert redact(f"at json:{slashes}u:{S}@h/a") == f"at json:{slashes}***@h/a"


@pytest.mark.parametrize(
    "text",
    [
        "run trunk@20 is at http://127.0.0.1:9877/metrics",
        "basic assumptions, and the bearer of news",
        "/home/me/a@b/runs.db",
        "λ̂ = 3.5, R-hat = 1.01",
        "http://g/d/x?var-run=a%4020&from=1&to=2",
    ],
)
def test_what_is_none_stays(text):
    assert redact(text) == text


def test_a_known_secret_is_taken_out_wherever_it_stands():
    add_secret("hunter%202")
    assert redact("say hunter 2 or hunter%202") == "say *** or ***"
    assert redacted({"a": ["hunter 2", 3], "hunter 2": None}) == {"a": ["***", 3], "***": None}


def test_logs_hold_no_secret_in_message_arguments_or_traceback(caplog):
    log = get_logger("phasewatch.test")
    log.warning("at %s", f"http://u:{S}@h")
    try:
        raise ValueError(f"no such place: http://u:{S}@h")
    except ValueError:
        log.exception("it failed")
    assert S not in caplog.text
    assert "it failed" in caplog.text
    assert "ValueError" in caplog.text


STORES = [
    f"postgresql://u:{S}@127.0.0.1:abc/db",
    f"postgresql//u:{S}@h/db",
    f"postgresql:u:{S}@h/db",
    f"postgres://u:{S}@h/db",
    f"postgresql+nothing://u:{S}@h/db",
    f"postgresql://u:p@ss/{S}@h:5432x/db",
    f"postgresql+nothing://h/db?password={S}",
    f"post gres://u:{S}@h/db",
]


@pytest.mark.parametrize("store", STORES)
def test_a_store_that_cannot_be_opened_is_named_without_secrets_and_makes_no_folder(
    store, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError) as caught:
        Store(store)
    error = caught.value
    while error is not None:
        assert S not in f"{error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    assert S not in caplog.text
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    "settings",
    [
        {"grafana": {"url": f"http://u:{S}@g"}},
        {"grafana": {"url": f"http://g/?token={S}"}},
        {"pushgateway": {"url": f"http://u:{S}@g"}},
        {"pushgateway": {"url": f"http://g/?token={S}"}},
        {"alerts": {"report_url": f"http://u:{S}@g/" + "{run}"}},
        {"alerts": {"report_url": f"http://g/?run=x&sig={S}"}},
        {"alerts": {"grafana_url": f"http//u:{S}@g"}},
        {"store": [f"postgresql://u:{S}@h/d"]},
        {"exporter": {"port": f"http://u:{S}@h"}},
        {"run_name": {"url": f"http://u:{S}@h"}},
    ],
)
def test_an_address_with_a_secret_is_refused_without_showing_it(settings):
    with pytest.raises(ConfigError) as caught:
        MonitorConfig.load(settings)
    assert S not in str(caught.value)


@pytest.mark.parametrize("url", ["https://g.example/grafana", "http://h:3000/r/{run}?theme=dark"])
def test_a_plain_address_is_taken_as_it_is(url):
    assert web_address(url) == url


def end_badly(watch):
    """Observe, tell and fail; what the exporter served meanwhile."""
    with watch:
        watch.observe(1, {"train_loss": 1.0})
        watch.drain()
        watch._sinks.notify(make_transition(watch.run_id, status=TransitionStatus.CONFIRMED))
        with urllib.request.urlopen(watch.metrics_url) as answer:
            page = answer.read()
        (watch.store.path.parent / "page").write_bytes(page)
        torch.save(watch.state_dict(), watch.store.path.parent / "last.ckpt")
        raise ValueError(f"boom at postgresql://u:{S}-reason@h/db?password={S}-query")


def say_yes(connection):
    connection.sendall(b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"id": 1}')


@pytest.mark.filterwarnings("ignore:Query string argument")
@pytest.mark.slow
def test_no_byte_that_a_run_writes_or_sends_holds_a_secret(
    tmp_path, caplog, monkeypatch, phasewatch
):
    """Secrets in every place that takes one; all files, logs, pages, and what others were sent."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PUSH_PASSWORD", f"{S}-push")
    monkeypatch.setenv("PHASEWATCH_GRAFANA_TOKEN", f"{S}-token")
    store = f"sqlite:///{tmp_path}/runs.db?key={S}-store"
    with (
        http_target() as told,
        stranger(say_yes) as (push, pushed),
        stranger(say_yes) as (grafana, noted),
    ):
        settings = {
            "run_name": "r",
            "store": store,
            "exporter": {"port": 0, "targets_dir": str(tmp_path / "targets")},
            "observables": {},
            "alerts": {
                "targets": [
                    f"json://127.0.0.1:{told.port}/{S}-path",
                    f"json://me:{S}-password@127.0.0.1:{told.port}/hook?-key={S}-parameter",
                    f"alertmanager://me:{S}-manager@127.0.0.1:9/{S}-prefix",
                ],
                "grace_seconds": 5,
            },
            "pushgateway": {
                "url": f"http://127.0.0.1:{push}",
                "username": "me",
                "password_env": "PUSH_PASSWORD",
                "linger_seconds": 0,
            },
            "grafana": {"url": f"http://127.0.0.1:{grafana}"},
        }
        watch = Watch(settings)
        with pytest.raises(ValueError, match="boom"):
            end_badly(watch)
        sent = str([body for _, _, body in told.seen]).encode()
    assert len(told.taken) == 2
    assert pushed
    assert noted
    asked = b"".join([*pushed, *noted])
    assert f"Bearer {S}-token".encode() in asked, "where it belongs, and nowhere else"
    sent += re.sub(rb"(?i)authorization:[^\r\n]*", b"", asked)
    redaction._known.clear()  # another process, which was told of none
    for command in (
        ["runs", "--json"],
        ["show", "r", "--json"],
        ["outbox", "--json"],
        ["report", "r", "--out", tmp_path / "report.html"],
        ["export", "r", "--format", "jsonl", "--out", tmp_path / "export.jsonl"],
        ["doctor"],
    ):
        code, out, err = phasewatch(*command, "--store", store)
        assert code == 0 or command == ["doctor"], err
        sent += (out + err).encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"page", "last.ckpt", "runs.db", "report.html"} <= {path.name for path in files}
    found = [path.name for path in files if S.encode() in path.read_bytes()]
    assert found == []
    assert S.encode() not in sent
    assert S not in caplog.text


def test_every_logger_of_ours_redacts():
    root = Path(phasewatch.monitor.__file__).parents[1]
    wrong = []
    for path in (*(root / "monitor").rglob("*.py"), *(root / "callbacks").rglob("*.py")):
        for name in re.findall(r'logging\.getLogger\(([\w".]*)\)', path.read_text("utf-8")):
            filters = logging.getLogger(name.strip('"')).filters
            if name not in ("name", '"apprise"') and redaction._filter not in filters:
                wrong.append((path.name, name))
    assert wrong == []
