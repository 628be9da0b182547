"""What is behind a port of a switch or a pipe: another port, with a guest of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS, NONE, Features
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Guest, from_guest, to_guest
from vnic_netmap import Vale
from vnic_netmap.embedded import switches

from kit.outsides import PLAIN, REFUSES_NOTHING, STAYS, Outside

EMBEDDED = Vale.Options(engine="embedded")


class AnotherLink(Outside):
    """A guest on another backend of the same kind, which is joined to the one under test."""

    other: str
    """The name of that one."""
    offloads: Features = GUEST_OFFLOADS
    """Those that its guest takes."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.link = Link("outside", loop)
        self.link.open([(self.plugin(), self.other, self.options)])
        self.link.set_features(self.offloads)
        self.guest = Guest(self.link, offloads=self.offloads)
        self.guest.start()

    def arrive(self, frames: Sequence[bytes]) -> None:
        self.guest.send(frames)

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.link.send(Burst.of([frame], [header]))

    def departed(self) -> list[bytes]:
        return [frame for frame, _ in self.departed_offloaded()]

    def departed_offloaded(self) -> list[tuple[bytes, bytes]]:
        guest = self.guest
        departed = list(zip(guest.frames, guest.headers, strict=True))
        guest.frames.clear()
        guest.headers.clear()
        return departed

    def n_lost(self) -> int:
        return sum(n for name, n in self.link.counters().items() if "_drop_" in name)

    def fill(self) -> None:
        self.guest.holds = True

    def drain(self) -> None:
        self.guest.release()

    def close(self) -> None:
        self.link.close()


def show_guest() -> None:
    """Have the switch learn where the guest is, by a frame to the outside, which has shown itself.

    So it is between guests that talk; what is flooded never waits.
    """
    switch = switches["vale0"]
    port = next(port for port in switch.ports.values() if port.name == "1")
    switch.forward(port, Burst.of(from_guest(1)))


class AnotherPort(AnotherLink):
    """Another port of the embedded switch."""

    plugin = Vale
    name = "vale0:1"
    other = "vale0:2"
    options: Any = EMBEDDED
    wrong = (("vale0", EMBEDDED), ("vale0:", EMBEDDED), ("vale0:2", EMBEDDED))
    cannot: ClassVar = {"refuse": REFUSES_NOTHING, "hang_up": STAYS}

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.guest.send(to_guest(1))  # shows its address

    def open(self, call: Callable[[], None]) -> None:
        call()
        show_guest()
        assert self.departed_offloaded() == [(from_guest(1)[0], PLAIN)]


class AnotherPortWithoutOffload(AnotherPort):
    """Its guest takes plain frames alone."""

    offloads = NONE
