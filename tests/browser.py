"""A real browser for tests: Chromium, without a window, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running Chromium; the test is skipped where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    with api.sync_playwright() as playwright:
        found = [path for path in map(shutil.which, _NAMES) if path] or [playwright.chromium.executable_path]
        if not Path(found[0]).exists():
            pytest.skip(f"no Chromium: none of {', '.join(_NAMES)} on the path; apt install chromium")
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page in a context of its own, with everything that went wrong on it."""

    def __init__(self, browser: Any, port: int, **options: Any):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.base = f"http://127.0.0.1:{port}"
        self.wrong: list[str] = []
        """Console messages, uncaught errors, dialogs, and requests to elsewhere."""
        self.page.on("console", lambda message: self._add(message.type, message.text))
        self.page.on("pageerror", lambda error: self._add("uncaught", str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._asked)
        self.page.on("popup", lambda other: self._add("popup", other.url))

    def open(self, address: str, status: int = 200) -> Any:
        """Load a page of the server, and return it."""
        answer = self.page.goto(self.base + address)
        assert answer is not None
        assert answer.status == status, self.page.inner_text("main")
        return self.page

    def _add(self, kind: str, text: str) -> None:
        # an answer of 4xx is a console message of the browser's own
        if "the server responded with a status of" not in text:
            self.wrong.append(f"{kind}: {text}")

    def _dismiss(self, dialog: Any) -> None:
        self._add("dialog", dialog.message)
        dialog.dismiss()

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.base, "data:")):
            self._add("request", request.url)

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.context.close()
        if kind is None:
            assert self.wrong == []
