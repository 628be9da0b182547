"""What a machine cannot give skips a test, with the line that says what is missing and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from kit.missing import Missing

if TYPE_CHECKING:
    from collections.abc import Generator


def _skip_what_is_missing() -> Generator[None, object, object]:
    try:
        return (yield)
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Whatever a fixture asked for."""
    return (yield from _skip_what_is_missing())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Whatever the test itself asked for."""
    return (yield from _skip_what_is_missing())
