"""A port of the embedded switch keeps the contract of backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Guest, from_guest, to_guest
from vnic.testing.contract import BackendContract, Outside
from vnic_netmap import Vale
from vnic_netmap.embedded import switches

EMBEDDED = Vale.Options(engine="embedded")


class AnotherPort(Outside):
    """The outside of a port is another port, with a guest of its own."""

    plugin = Vale
    name = "vale0:1"
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)
    options = EMBEDDED
    wrong = (("vale0", EMBEDDED), ("vale0:", EMBEDDED), ("vale0:2", EMBEDDED))

    def __init__(self, loop: Loop) -> None:
        self.link = Link("outside", loop)
        self.link.open([(Vale(), "vale0:2", EMBEDDED)])
        self.guest = Guest(self.link, offloads=GUEST_OFFLOADS)
        self.guest.start()
        self.guest.send(to_guest(1))  # shows its address

    def open(self, call: Callable[[], None]) -> None:
        # Both addresses are known, as between guests that talk: what is flooded never waits.
        call()
        switch = switches["vale0"]
        port = next(port for port in switch.ports.values() if port.name == "1")
        switch.forward(port, Burst.of(from_guest(1)))
        self.guest.frames.clear()

    def arrive(self, frames: Sequence[bytes]) -> None:
        self.guest.send(frames)

    def departed(self) -> list[bytes]:
        frames = self.guest.frames[:]
        self.guest.frames.clear()
        return frames

    def fill(self) -> None:
        self.guest.holds = True

    def drain(self) -> None:
        self.guest.release()

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.link.send(Burst.of([frame], [header]))

    def close(self) -> None:
        self.link.close()


class TestVale(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return AnotherPort(loop)
