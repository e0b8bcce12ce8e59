"""A real browser for the tests of this folder; they are skipped, with the reason, where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

BINARIES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> str | None:
    """The browser's program; None for the one that playwright brought itself."""
    if found := next(filter(None, map(shutil.which, BINARIES)), None):
        return found
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    if not own.exists():
        pytest.skip(f"no Chromium here: none of {', '.join(BINARIES)} is installed, nor playwright's own")
    return None


@contextmanager
def opened(chromium: str | None, *, width: int = 1280, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """A page, and what the browser complained about (the content security policy included).

    Django refuses its database to a thread in which playwright runs: look at rows before or after, not inside.
    """
    complaints: list[str] = []
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not work for root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        try:
            page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
            page.set_default_timeout(30_000)
            page.on("console", lambda said: said.type in ("error", "warning") and complaints.append(said.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            yield page, complaints
        finally:
            browser.close()
