"""What every test shares: in CI a test of a real component must run."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

REAL_COMPONENTS = ("fuse", "rados")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where CI=true, skipping a test of a real component is a failure: CI would be green without having looked."""
    report = yield
    real = any(item.get_closest_marker(name) for name in REAL_COMPONENTS)
    if report.skipped and real and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report
