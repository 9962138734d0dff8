"""What an alert says."""

from phasewatch.monitor.alerts.message import write_alert
from phasewatch.monitor.config.alerts import AlertsConfig
from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.core.transitions import TransitionKind, TransitionStatus
from support.records import make_transition

HOSTILE = 'a\nb\x1b[31m "q" <b>' + "x" * 10_000 + "\udcff"


def write(
    *,
    run="demo",
    state=TransitionStatus.CONFIRMED,
    config=None,
    told_as=(),
    store="runs.db",
    **changes,
):
    values = {"status": state, "severity": 1.5, "after": {"val_loss": 0.0312345}, "epoch": 3}
    transition = make_transition("abcdef123456", **(values | changes))
    return write_alert(
        transition,
        key="k",
        state=state,
        told_as=told_as,
        run=run,
        units={"val_loss": "nats"},
        store=store,
        config=config or AlertsConfig(),
    )


def test_an_alert_says_what_when_how_sure_and_where():
    alert = write()
    assert alert.title == "demo: generalisation, from step 80"
    assert alert.body.splitlines() == [
        *explain(alert.transition, units={"val_loss": "nats"}).lines,
        "Report: phasewatch report abcdef12 --store runs.db",
        "Id: t1",
    ]
    for said in (
        "What: generalisation: held-out data improve, training data do not",
        "When: from step 80, detected at step 90, epoch 3, 2023-11-14 22:14:50 UTC",
        "How much: severity 1.5 (1 is tenfold); val_loss: 2 → 0.03123 nats",
        "How sure: 1 independent witness: val_loss at 1.5 times its threshold",
        "Where: block.1 (0.25 ± 0.02 times), head (0.12 ± 0.008 times) as far as",
    ):
        assert said in alert.body


def test_a_store_on_a_server_is_not_named():
    alert = write(store="postgresql://host.internal/db")
    assert "Report: phasewatch report abcdef12\n" in alert.body
    assert "host.internal" not in alert.body + alert.title


def test_each_state_has_its_title():
    ended = write(state=TransitionStatus.ENDED, end_step=95)
    assert ended.title == "demo: generalisation has ended, from step 80"
    assert "ended at step 95" in ended.body
    assert write(state=TransitionStatus.WITHDRAWN).title.startswith("demo: withdrawn: it was no")
    assert "suspected" in write(state=TransitionStatus.SUSPECTED).title


def test_a_correction_says_what_was_told_before():
    alert = write(told_as=(TransitionKind.MEMORISATION, TransitionKind.SIMPLIFICATION))
    assert alert.title.startswith("demo: generalisation")
    assert alert.title.endswith(" (told before as simplification)")
    assert alert.body.startswith("Correction: it was told as simplification before\n")
    again = write(told_as=(TransitionKind.SIMPLIFICATION, TransitionKind.GENERALISATION))
    assert "before as" not in again.title
    assert "Correction" not in again.body


def test_every_kind_is_explained():
    said = {write(kind=kind).body.splitlines()[0] for kind in TransitionKind}
    assert len(said) == len(TransitionKind)


def test_links_name_the_run_safely():
    config = AlertsConfig(report_url="https://r.example/{run}.html", grafana_url="http://g:3000/")
    alert = write(run="a b/c", config=config)
    assert "Report: https://r.example/a%20b%2Fc.html" in alert.body
    assert "Grafana: http://g:3000/d/phasewatch-run?var-run=a%20b%2Fc&from=" in alert.body
    assert "phasewatch report" not in alert.body
    assert alert.link == "https://r.example/a%20b%2Fc.html"


def test_hostile_names_stay_in_their_line_and_are_cut():
    evil = write(run=HOSTILE, before={HOSTILE: 1.0}, after={HOSTILE: 2.0})
    assert "\n" not in evil.title
    assert "\x1b" not in evil.title + evil.body
    assert len(evil.title) < 300
    assert len(evil.body) < 2000
    (evil.title + evil.body).encode()
    linked = write(run=HOSTILE[:50] + "\udcff", config=AlertsConfig(report_url="http://x/{run}"))
    linked.body.encode()
