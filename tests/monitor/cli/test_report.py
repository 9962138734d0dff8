"""`phasewatch report`."""

from __future__ import annotations

import pytest

from phasewatch.monitor.store.store import Store
from support.history import RUN_ID, fill


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "runs.db"
    with Store(path) as opened:
        fill(opened, name="seed 0", steps=100)
        fill(opened, name="seed 1", steps=100, run_id="f" * 32)
    return path


def test_one_command_writes_page_picture_and_text(phasewatch, store, tmp_path):
    out, png, text = (tmp_path / name for name in ("x.html", "x.png", "x.md"))
    arguments = ("seed 0", "ffff", "--store", store, "--out", out, "--png", png, "--md", text)
    code, said, err = phasewatch("report", *arguments)
    assert (code, err) == (0, "")
    assert said == f"report of seed 0, seed 1 written to {out}, {png}, {text}\n"
    assert "seed 0: 1 transition" in out.read_text(encoding="utf-8")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "![Curves](<x.png>)" in text.read_text(encoding="utf-8")


def test_a_run_that_is_named_twice_is_drawn_once(phasewatch, store, tmp_path):
    out = tmp_path / "x.html"
    phasewatch("report", "seed 0", RUN_ID, "--store", store, "--out", out)
    assert "<h1>seed 0</h1>" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize("option", ["--out", "--png", "--md"])
def test_what_cannot_be_written_is_one_line(phasewatch, store, tmp_path, option):
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "x"
    given = ["--out", tmp_path / "x.html", option, bad]
    code, _, err = phasewatch("report", "seed 0", "--store", store, *given)
    assert code == 1
    assert f"give {option} a path that can be" in err
    assert err.count("\n") == 1
