"""The README says what is true: its commands exist and the list of cases is the tested one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support import zoo

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = [
    *(case.name for case in (*zoo.KINDS, *zoo.PRECISION, *zoo.OPTIMIZATION, *zoo.DATA)),
    *zoo.LIFE_CYCLE,
    *zoo.OUTCOMES,
]


def test_the_promise_lists_every_case_of_the_matrix() -> None:
    listed = (ROOT / "docs" / "untouched.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if name not in listed] == []


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench"])
def test_every_make_target_it_names_exists(target: str) -> None:
    assert f"make {target}" in README
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_every_file_it_links_to_exists() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_it_is_short_and_begins_with_a_picture() -> None:
    lines = README.splitlines()
    assert len(lines) < 120
    assert next(line for line in lines[1:] if line).startswith("![")
