"""A real browser without a window, for the report."""

import re
import shutil
import subprocess
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """The first of BROWSERS on PATH."""
    return next((b for b in map(shutil.which, BROWSERS) if b is not None), None)


def headless(browser: str, profile: Path, *arguments: str) -> str:
    """What the browser prints; `profile`: an empty directory for its own files."""
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--hide-scrollbars", "--virtual-time-budget=8000", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def dumped_page(browser: str, profile: Path, page: Path) -> str:
    """The page's elements after its script has run."""
    return headless(browser, profile, "--dump-dom", page.as_uri())


def check_everything_is_shown(dom: str, report: Path) -> None:
    """Every picture, video and chart of the report, by what its script has counted."""
    (opening,) = re.findall(r"<html[^>]*>", dom)
    assert 'data-ready="yes"' in opening, "the script did not run"
    assert 'data-broken-images="0"' in opening and 'data-broken-videos="0"' in opening
    assert dom.count("<svg") == report.read_text(encoding="utf-8").count("<svg") > 0
