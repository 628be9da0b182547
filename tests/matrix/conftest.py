"""Makes a cell of each step, frontend and backend, and prints the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.missing import Missing

from matrix.backends import BACKENDS
from matrix.cell import Cell
from matrix.frontends import FRONTENDS
from matrix.table import Matrix

MATRIX = Matrix(list(BACKENDS), list(FRONTENDS))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--matrix", action="store_true", help="print the table of tests/matrix")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*names): what an outside must be able to do")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the cells of a step; where a backend can't have it, the table says why."""
    if "cell" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("needs")
    needs: tuple[str, ...] = marker.args if marker else ()
    step = _sentence(metafunc.function.__name__)
    MATRIX.steps.append(step)
    cells = []
    for name, outside in BACKENDS.items():
        why = [outside.cannot[need] for need in needs if need in outside.cannot]
        if why:
            MATRIX.does_not_apply(step, name, why[0])
            continue
        marks = [pytest.mark.root] if outside.needs_root else []
        cells += [
            pytest.param((frontend, name), id=f"{frontend} on {name}", marks=marks)
            for frontend in FRONTENDS
        ]
    metafunc.parametrize("cell", cells, indirect=True)


@pytest.fixture
def cell(request: pytest.FixtureRequest) -> Iterator[Cell]:
    """A NIC that is open and driven; in the end it is taken apart."""
    frontend, backend = request.param
    step = _sentence(request.function.__name__)
    request.node.user_properties.append(("cell", (step, frontend, backend)))
    try:
        cell = Cell(FRONTENDS[frontend], BACKENDS[backend])
    except Missing as missing:
        pytest.skip(str(missing))
    try:
        cell.open()
        cell.drive()
        yield cell
    finally:
        cell.close()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """What a machine can't give, a step finds out as late as it asks for it."""
    try:
        return (yield)
    except Missing as missing:
        pytest.skip(str(missing))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    place = dict(report.user_properties).get("cell")
    if isinstance(place, tuple) and (report.when == "call" or not report.passed):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        MATRIX.note(*place, report.outcome, reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if terminalreporter.config.getoption("matrix", False):
        terminalreporter.section("every frontend on every backend")
        for line in MATRIX.lines():
            terminalreporter.write_line(line)


def _sentence(test: str) -> str:
    return test.removeprefix("test_").replace("_", " ")
