"""The live page as a browser gets it: through a port, complete, live, and for who may see it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import signal
import sys
from urllib.parse import quote, urlencode

import pytest

from phasewatch.monitor.core.estimates import EstimateStatus, Observation
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.transitions import Recipient, TransitionStatus
from phasewatch.monitor.serve.access import POLICY, Access
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill, transition
from support.pages import get, served
from support.records import make_transition, start_python, wait_until

HOSTILE = "</script><img src=x onerror=alert(1)>"
KEY = f"0.{RUN_ID}"


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as opened:
        fill(opened, name=HOSTILE)
        opened.flush()
        yield opened


@pytest.fixture
def url(store):
    with served(store) as address:
        yield address


def series(url, *names, **more):
    asked = urlencode([("name", name) for name in names] + [*more.items()])
    answer = get(f"{url}/api/run/{KEY}/series?{asked}")
    assert answer.status == 200, answer.text
    return {one["name"]: one for one in answer.content["series"]}


# ---- what is shown


def test_the_list_has_every_run_of_every_store_the_latest_first(store, tmp_path):
    with Store(tmp_path / "other.db") as other:
        other.begin_run(name="newer", run_id="b" * 32)
        with served(store, other) as url:
            found = get(f"{url}/api/runs").content
    assert [run["name"] for run in found["runs"]] == ["newer", HOSTILE]
    assert [run["store"] for run in found["runs"]] == ["1", "0"]
    assert [one["where"] for one in found["stores"]] == [store.where, other.where]
    assert found["runs"][1]["transitions"] == [
        {"kind": "generalisation", "status": "ended", "onset": 500}
    ]


def test_the_list_tells_what_became_of_the_alerts(store, url):
    found = make_transition(RUN_ID, status=TransitionStatus.CONFIRMED, transition_id="told")
    store.add_transition(found, (Recipient(target="a"), Recipient(target="b")))
    store.flush()
    assert get(f"{url}/api/runs").content["runs"][0]["alerts"] == {"waiting": 2}


def test_a_run_has_its_transitions_in_the_words_of_every_face(store, url):
    found = get(f"{url}/api/run/{KEY}").content
    (card,) = found["transitions"]
    (told,) = store.transitions(RUN_ID)
    info = store.run(RUN_ID)
    said = explain(told, config=info.config, units=store.units(RUN_ID))
    assert (card["title"], card["facts"]) == (said.title, dict(said.facts))
    assert (card["band"], card["detected"]) == ([500, 900], 600)
    families = {one["name"]: one["family"] for one in found["streams"]}
    assert families["train_loss"] == families["val_loss"] == "Losses"
    assert families["llc"] == "λ̂"


def test_a_curve_has_gaps_where_a_value_is_not_ok_and_the_value_beside_it(url):
    llc = series(url, "llc")["llc"]
    assert llc["x"].count(None) == 2
    assert 251 not in llc["x"]
    assert llc["doubtful"] == {"x": [251], "y": [150.0], "status": ["unconverged"]}
    assert llc["lost"] == [333]
    assert [e is None for e in llc["error"]] == [x is None for x in llc["x"]]


def test_a_long_curve_is_thinned_and_keeps_its_spike_and_refines_when_zoomed(store, url):
    for step in range(1001, 21_001):
        value = 100.0 if step == 12_345 else 1.0 + step % 7
        store.add_observation(RUN_ID, 1, Observation(name="long", step=step, value=value))
    store.flush()
    whole = series(url, "long")["long"]
    assert whole["count"] == 20_000
    assert len(whole["x"]) <= 1202
    assert whole["y"][whole["x"].index(12_345)] == 100.0
    part = series(url, "long", **{"from": 12_300, "to": 12_400})["long"]
    assert part["x"] == [*range(12_299, 12_402)]


def test_wall_time_goes_with_the_steps_where_it_is_asked_for(store, url):
    for step in (2000, 3000):
        store.add_observation(
            RUN_ID, 1, Observation(name="timed", step=step, value=1.0, timestamp=5000.0 + step)
        )
    store.flush()
    assert series(url, "timed", timed=1)["timed"]["time"] == [7000.0, 8000.0]
    assert "time" not in series(url, "timed")["timed"]


def test_sparklines_are_of_a_loss_and_of_the_llc(url):
    found = get(f"{url}/api/sparks?run={KEY}").content[KEY]
    assert (found["loss"]["name"], found["llc"]["name"]) == ("train_loss", "llc")
    assert len(found["loss"]["x"]) <= 62


def test_runs_are_compared_at_a_transition(store, url, tmp_path):
    other = "f" * 32
    store.begin_run(name="later", run_id=other)
    for step in range(110, 1111, 10):
        store.add_observation(other, 1, Observation(name="val_loss", step=step, value=1.0))
    later = dataclasses.replace(transition(onset=600), run=other, id="later")
    store.add_transition(later)
    store.begin_run(name="none", run_id="e" * 32)
    store.add_observation("e" * 32, 1, Observation(name="val_loss", step=1, value=1.0))
    store.flush()
    asked = [("run", KEY), ("run", f"0.{other}"), ("run", f"0.{'e' * 32}"), ("name", "val_loss")]
    found = get(f"{url}/api/compare?{urlencode([*asked, ('align', 'generalisation')])}").content
    assert [run["onset"] for run in found["runs"]] == [500, 600, None]
    (panel,) = found["panels"]
    assert {key: min(curve["x"]) for key, curve in panel["curves"].items()} == {
        KEY: -490,
        f"0.{other}": -490,
    }
    assert panel["mean"]["x"][0] == -490
    assert panel["mean"]["x"][-1] == 500
    assert found["names"] == ["val_loss"]


# ---- live


def test_what_is_written_appears_with_the_next_question(store, url):
    assert series(url, "new")["new"]["x"] == []
    mark = get(f"{url}/api/run/{KEY}").headers["Etag"]
    assert get(f"{url}/api/run/{KEY}", If_None_Match=mark).status == 304
    run, attempt = store.begin_run(name="x", run_id=RUN_ID, attempt=2, resumed_step=1000)
    for step in (1001, 1002):
        store.add_observation(run, attempt, Observation(name="new", step=step, value=1.0))
        store.flush()
        wait_until(lambda at=step: series(url, "new")["new"]["x"][-1:] == [at], what="the point")
    store.add_transition(make_transition(RUN_ID, 1003, attempt=attempt, transition_id="fresh"))
    store.flush()
    answer = get(f"{url}/api/run/{KEY}", If_None_Match=mark)
    assert answer.status == 200
    assert [card["id"] for card in answer.content["transitions"]][-1] == "fresh"


def test_what_a_resume_supersedes_goes_from_the_curve(store, url):
    assert series(url, "val_loss")["val_loss"]["x"][-1] == 1000
    run, attempt = store.begin_run(name="x", run_id=RUN_ID, attempt=2, resumed_step=500)
    store.add_observation(run, attempt, Observation(name="val_loss", step=510, value=7.0))
    store.flush()
    curve = series(url, "val_loss")["val_loss"]
    assert (curve["x"][-1], curve["y"][-1]) == (510, 7.0)


# ---- who may see it, and what it may load


@pytest.mark.parametrize(
    ("host", "needs"), [("127.0.0.1", False), ("::1", False), ("localhost", False),
                        ("0.0.0.0", True), ("192.168.1.5", True), ("gpu-box", True)],
)  # fmt: skip
def test_an_address_that_others_reach_needs_a_token(host, needs):
    assert bool(Access.of(host).token) is needs


def test_a_token_is_made_anew_unless_one_is_given():
    assert Access.of("0.0.0.0").token != Access.of("0.0.0.0").token
    assert Access.of("0.0.0.0", "mine").token == "mine"


def test_without_the_token_nothing_is_shown(store):
    with served(store, token="s3cret") as url:
        for path in ("/", "/api/runs", f"/run/{KEY}", f"/run/{KEY}/export.csv", "/static/app.js"):
            for answer in (get(url + path), get(url + path, Cookie="phasewatch=other")):
                assert answer.status == 401
                assert RUN_ID not in answer.text
        assert get(f"{url}/api/runs", Authorization="Bearer s3cret").status == 200
        moved = get(f"{url}/run/{KEY}?x=log&token=s3cret")
        assert (moved.status, moved.headers["Location"]) == (303, f"/run/{KEY}?x=log")
        cookie = moved.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert get(f"{url}/api/runs", Cookie=cookie.split(";")[0]).status == 200


def test_a_name_that_leads_here_from_elsewhere_is_turned_away(url):
    assert get(f"{url}/api/runs", Host="evil.example").status == 401
    assert get(f"{url}/api/runs", Host="localhost:1").status == 200


def test_the_page_loads_nothing_from_anywhere_else(url):
    page = get(f"{url}/")
    assert page.headers["Content-Security-Policy"] == POLICY
    assert "unsafe-eval" not in POLICY
    assert "script-src 'self';" in POLICY
    names = ["app.js", "common.js", "runs.js", "run.js", "compare.js", "style.css"]
    texts = [page.text, *(get(f"{url}/static/{name}").text for name in names)]
    own = {"http://www.w3.org/2000/svg"}
    for text in texts:
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= own
        assert "innerHTML" not in text
    assert len(get(f"{url}/static/plotly.js").body) > 1_000_000


@pytest.mark.parametrize(
    "path", ["/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/none.js", "/else"]
)
def test_nothing_but_the_page_is_served(url, path):
    assert get(url + path).status == 404


def test_hostile_names_are_data_and_never_part_of_a_page(url):
    for path in ("/", f"/run/{KEY}", "/compare"):
        page = get(url + path)
        assert page.headers["Content-Type"].startswith("text/html")
        assert "onerror" not in page.text
    answer = get(f"{url}/api/runs")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content["runs"][0]["name"] == HOSTILE


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/api/run/0.none", 404, "no run 'none'"),
        ("/api/run/9.none", 404, "no store '9'"),
        (f"/api/run/{KEY}/series?from=abc", 400, "from is 'abc'; it must be a number"),
        (f"/run/{KEY}/export.exe", 404, "no format 'exe'; there are csv"),
    ],
)
def test_a_wrong_question_is_told_what_is_wrong(url, path, status, said):
    answer = get(url + path)
    assert (answer.status, said in answer.text) == (status, True)


# ---- downloads


def test_a_run_is_downloaded_with_the_status_of_every_value(url):
    answer = get(f"{url}/run/{KEY}/export.csv")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{RUN_ID}.csv"'
    rows = [*csv.DictReader(io.StringIO(answer.text))]
    (doubtful,) = [r for r in rows if r["name"] == "llc" and r["step"] == "251"]
    assert (doubtful["value"], doubtful["status"]) == ("150.0", "unconverged")
    lines = get(f"{url}/run/{KEY}/export.jsonl").text.splitlines()
    assert len(lines) == len(rows)
    (lost,) = [r for r in map(json.loads, lines) if r["status"] == EstimateStatus.DIVERGED]
    assert (lost["step"], lost["value"]) == (333, "nan")


def test_the_report_is_a_page_with_its_own_policy(url):
    answer = get(f"{url}/run/{KEY}/report.html")
    assert "1 transition: generalisation at step 500" in answer.text
    assert "default-src 'none'" in answer.text
    assert answer.headers["Content-Security-Policy"] == "frame-ancestors 'none'"


# ---- the command


def test_the_command_prints_its_address_and_ends_when_told(store):
    code = "from phasewatch.monitor.cli.main import main; main()"
    process = start_python(code, "serve", store.path, "--port", 0)
    try:
        said = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+/", said)
        assert address, said
        assert len(get(f"{address[0]}api/runs").content["runs"]) == 1
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (0, "", "")


def test_a_store_that_is_not_there_is_one_line(phasewatch, tmp_path):
    code, _, err = phasewatch("serve", tmp_path / "none.db")
    assert code == 1
    assert err.startswith(f"phasewatch: there is no store at {tmp_path / 'none.db'}")


@pytest.mark.skipif(sys.platform == "win32", reason="binding is not exclusive there")
def test_a_port_that_is_taken_is_one_line(store, url, phasewatch):
    port = url.rpartition(":")[2]
    code, _, err = phasewatch("serve", store.path, "--port", port)
    assert code == 1
    assert err.startswith(f"phasewatch: 127.0.0.1:{port} cannot be listened on: ")
    assert "give --port another" in err


def test_a_name_that_is_quoted_in_an_address_is_found(url):
    assert get(f"{url}/api/run/{quote(KEY, safe='')}").status == 200
