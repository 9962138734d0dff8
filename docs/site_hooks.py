"""What the site needs beyond the pages: its front, and files of the repository that pages show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)#]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the README in front; show the code that a page links to, and name other files.

    Args:
        markdown: The page.
        page: What mkdocs knows of it.
    """
    if page.file.src_uri == "index.md":
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        markdown = text.replace("](docs/", "](").replace(
            "](CONTRIBUTING.md)", "](../CONTRIBUTING.md)"
        )
    return LINK.sub(_shown, markdown)


def _shown(link: re.Match[str]) -> str:
    """A file outside of the site: its code, or its name."""
    path = (ROOT / "docs" / link[2]).resolve()
    if not path.exists():
        raise FileNotFoundError(f"a page links to {link[2]}, which does not exist")
    if path.suffix == ".py":
        return f"```python\n{path.read_text(encoding='utf-8').rstrip()}\n```"
    return f"{link[1]} (`{path.relative_to(ROOT)}`)"
