"""Rules for tests on real data: skipped without ``DEMR_DATA``, never skipped with it."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data") and not os.environ.get("DEMR_DATA"):
        pytest.skip("DEMR_DATA is not set")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and os.environ.get("DEMR_DATA") and item.get_closest_marker("data"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped although DEMR_DATA is set: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; only tests marked ``data`` may ask for it."""
    return Path(os.environ["DEMR_DATA"])
