"""What holds for all tests."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under CI a skipped test is a failure: what is not shown there is not shown."""
    if os.environ.get("CI", "").lower() not in {"true", "1"}:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"under CI no test may be skipped, and {len(skipped)} were", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
