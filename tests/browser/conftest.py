"""A browser, and what it saw."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

PICTURES = os.environ.get("PHASEWATCH_PICTURES")
"""Folder for what the tests saw, to be looked at."""


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def seen():
    def keep(page, name):
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)

    return keep
