"""The demo's network: three software guests on ports of one embedded switch, on one loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from vnic.cli.demo.stream import ShortfallError
from vnic.loop import Loop
from vnic.nic import open_spec
from vnic.testing import SoftwareHost
from vnic.testing.guest import Guest

if TYPE_CHECKING:
    from vnic.registry import Registry
    from vnic.testing import Driver

SWITCH: Final = "vale0"
FRONTENDS: Final = ("virtio-net", "virtio-net", "e1000")
"""One guest each."""
FALLBACK: Final = "virtio-net"
"""Instead of one that is not installed."""

ANSWER_S: Final = 2.0
"""How long an answer may take: thousands of times what it does take, on a busy machine too."""
_SETTLE_ROUNDS: Final = 4


class Network:
    """Guests that reach each other; it moves only while one of its methods runs."""

    def __init__(self, registry: Registry, opened: ExitStack) -> None:
        """Open everything; ``opened`` closes it.

        Raises: ConfigError or BackendError.
        """
        self.loop = Loop()
        opened.callback(self.loop.close)
        self.guests: list[Guest] = []
        self.frontends: dict[str, str] = {}
        """What each guest has for a NIC, by the guest's name."""
        self._counters: list[Callable[[], dict[str, int]]] = []
        installed = registry.prefixes("drivers")
        for i, wanted in enumerate(FRONTENDS, 1):
            frontend = wanted if wanted in installed else FALLBACK
            driver_class = registry.load("drivers", frontend).cls
            host = SoftwareHost(self.loop)
            nic = open_spec(f"{frontend},{SWITCH}:{i},name=guest{i}", host, registry)
            self.frontends[nic.name] = frontend
            opened.callback(nic.close)
            driver: Driver = driver_class(nic, host)
            opened.callback(driver.stop)
            self.guests.append(Guest(driver, f"10.0.0.{i}", nic.name))
            self.count(nic.counters)
        self.settle()

    def count(self, counters: Callable[[], dict[str, int]]) -> None:
        """Have `drops` look at these counters too."""
        self._counters.append(counters)

    def drops(self) -> int:
        """Return how many frames were dropped and counted, anywhere, up to now."""
        return sum(
            n
            for counters in self._counters
            for name, n in counters().items()
            if "drop" in name or "discarded" in name
        )

    def pump(self) -> None:
        """Let the loop and all guests do what there is to do now."""
        self.loop.dispatch()
        for guest in self.guests:
            guest.poll()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Pump until something is so.

        Raises: ShortfallError, saying ``what``, when it isn't so in time.
        """
        deadline = time.monotonic() + ANSWER_S
        while not condition():
            if time.monotonic() > deadline:
                raise ShortfallError(f"{what} within {ANSWER_S:g} s")
            self.pump()

    def settle(self) -> None:
        """Pump until nothing moves, then have each driver judge its device at rest.

        Raises: DriverError.
        """
        quiet = 0
        deadline = time.monotonic() + ANSWER_S
        while quiet < _SETTLE_ROUNDS and time.monotonic() < deadline:
            self.loop.dispatch()
            moved = sum(guest.poll() + guest.driver.n_outstanding for guest in self.guests)
            quiet = 0 if moved else quiet + 1
        for guest in self.guests:
            guest.driver.check()
