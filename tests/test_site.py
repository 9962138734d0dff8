"""The site: all pages are in it, and what its hooks make of them. `make site` builds it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOOKS = runpy.run_path(str(ROOT / "docs" / "site_hooks.py"))


def shown(markdown: str, name: str = "extend.md") -> str:
    page = SimpleNamespace(file=SimpleNamespace(src_uri=name))
    return HOOKS["on_page_markdown"](markdown, page)


def test_every_page_is_listed_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text)["nav"]
    listed = re.findall(r"'([a-z_]+\.md)'", str(nav))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_front_is_the_readme_with_links_to_pages() -> None:
    front = shown("", "index.md")
    assert front.startswith("# phasewatch")
    assert "(live.png)" in front
    assert "docs/" not in "".join(re.findall(r"\]\(([^)]*)\)", front))


def test_code_that_a_page_links_to_is_shown_whole() -> None:
    path = "tests/packages/sink/jsonl_sink.py"
    assert (ROOT / path).read_text(encoding="utf-8").rstrip() in shown(f"[a sink](../{path})")


def test_other_files_of_the_repository_are_named() -> None:
    assert shown("see [rules](../deploy/prometheus/rules.yml).") == (
        "see rules (`deploy/prometheus/rules.yml`)."
    )
    with pytest.raises(FileNotFoundError, match=r"missing\.yml"):
        shown("[x](../missing.yml)")
