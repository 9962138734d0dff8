"""Write deploy/prometheus/runbook.html, which every exporter serves, from docs/runbook.md."""

from __future__ import annotations

import re
from pathlib import Path

from markdown_it import MarkdownIt

SOURCE = Path(__file__).with_name("runbook.md")
PAGE = Path(__file__).parents[1] / "deploy" / "prometheus" / "runbook.html"

HEAD = """\
<!DOCTYPE html>
<!-- Written by docs/build_runbook.py from docs/runbook.md: change that, not this. -->
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>phasewatch: runbook</title>
<style>
  body { max-width: 45em; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; }
  h2:target { background: #ffc; }
  code { background: #eee; padding: 0 .2em; }
  td, th { border: 1px solid #ccc; padding: .2em .5em; text-align: left; }
  table { border-collapse: collapse; }
</style>
"""


def render() -> str:
    """The whole page: each alert's heading carries its name, in small letters, as its anchor."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", SOURCE.read_text(encoding="utf-8"))
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub(r"<h2>(\w+)</h2>", lambda m: f'<h2 id="{m[1].lower()}">{m[1]}</h2>', str(body))
    return f"{HEAD}{body}</html>\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
