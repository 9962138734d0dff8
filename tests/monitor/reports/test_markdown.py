"""A run in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from phasewatch.monitor.core.explanation import explain
from phasewatch.monitor.reports.markdown import escaped, write_markdown
from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill

HOSTILE = "<script>alert(1)</script> [x](http://y) | `a` *b* _c_ # d\nnew line"


@pytest.fixture
def store() -> Iterator[Store]:
    with Store("sqlite://") as opened:
        yield opened


def test_it_says_what_the_page_says(store: Store, tmp_path: Path) -> None:
    fill(store)
    text = write_markdown(store, RUN_ID, tmp_path / "new" / "run.md").read_text(encoding="utf-8")
    (found,) = store.transitions(RUN_ID)
    for heading, fact in explain(found, units=store.units(RUN_ID)).facts:
        assert f"- **{heading}**: {escaped(fact)}" in text
    assert text.startswith("# by hand\n\nfinished · 1,000 steps")
    assert "**1 transition: generalisation at step 500**" in text
    assert "| llc | 27 | 1.0671 ± 0.053 | 25 ok, 1 unconverged, 1 diverged |" in text
    assert "![" not in text


def test_a_picture_is_named_as_seen_from_the_file(store: Store, tmp_path: Path) -> None:
    fill(store)
    path = write_markdown(store, RUN_ID, tmp_path / "a" / "x.md", tmp_path / "b" / "my run.png")
    assert "![Curves](<../b/my run.png>)" in path.read_text(encoding="utf-8")


def test_names_stay_text(store: Store, tmp_path: Path) -> None:
    fill(store, name=HOSTILE, extra=HOSTILE)
    text = write_markdown(store, RUN_ID, tmp_path / "run.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "\\[x\\](http\\://y)" in text
    assert "http://" not in text
    table = text.split("## Observed")[1].strip().splitlines()
    assert all(line.replace("\\|", "").count("|") == 5 for line in table), table


def test_several_runs_follow_one_another(store: Store, tmp_path: Path) -> None:
    other = fill(store, name="seed 1", run_id="f" * 32, transitions=())
    fill(store, name="seed 0")
    path = write_markdown(store, [RUN_ID, other], tmp_path / "runs.md")
    text = path.read_text(encoding="utf-8")
    assert text.startswith("2 runs")
    assert text.index("# seed 0") < text.index("# seed 1")
    assert "**No transition was found.**" in text.split("# seed 1")[1]
