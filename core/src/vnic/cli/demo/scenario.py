"""What the demo does, from the first frame to its report."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import attrs

from vnic.cli.demo.kernel import Kernel, KernelPair, UnavailableError
from vnic.cli.demo.network import Network
from vnic.cli.demo.pair import GuestPair, Pair, Row
from vnic.registry import Registry

Step = Callable[[str, int, int], None]
"""Told what is done next, in words, after how many steps of how many."""


@attrs.define(kw_only=True)
class Report:
    """What came of it."""

    rows: list[Row] = attrs.Factory(list)
    guests: dict[str, str] = attrs.Factory(dict)
    """Their frontends, by name."""
    skipped: dict[str, str] = attrs.Factory(dict)
    """What was left out, and why."""
    failures: list[str] = attrs.Factory(list)
    """What fell short; empty when all is well."""
    seconds: float = 0.0
    """How long it all took."""

    def as_dict(self) -> dict[str, object]:
        """Return it in JSON's types."""
        return {"ok": not self.failures, **attrs.asdict(self)}


def run(seconds: float, step: Step, registry: Registry | None = None) -> Report:
    """Run everything, measuring rates for ``seconds`` in all; return what came of it.

    Raises: ConfigError or BackendError, when guests or their switch can't be had.
    """
    registry = registry or Registry()
    report = Report()
    start = time.monotonic()
    with ExitStack() as opened:
        network = Network(registry, opened)
        guests = network.guests
        report.guests = network.frontends
        pairs: list[Pair] = [GuestPair(network, a, b) for a, b in itertools.combinations(guests, 2)]
        share_s = seconds / (len(pairs) + len(guests))
        _run(pairs, share_s, step, report)
        try:
            kernel = Kernel(network, registry, opened)
        except UnavailableError as error:
            report.skipped["tap"] = str(error)
        else:
            _run([KernelPair(network, guest, kernel) for guest in guests], share_s, step, report)
    report.seconds = time.monotonic() - start
    return report


def _run(pairs: Sequence[Pair], seconds: float, step: Step, report: Report) -> None:
    done = itertools.count()
    for pair in pairs:
        report.failures += pair.run(
            seconds, lambda what: step(what, next(done), len(pairs) * Pair.N_STEPS)
        )
        report.rows.append(pair.row)
