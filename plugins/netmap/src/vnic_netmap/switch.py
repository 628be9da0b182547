"""The embedded VALE: a learning switch inside the process.

All ports live on one loop, so a frame is delivered inside ``send``: the receiver's room takes it
straight from the sender's memory, and it is copied once.  What a receiver can't take now stays
with the sender, if that is possible without holding up others; else it is queued by copy, a
burst at the most, or dropped and counted.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from vnic.burst import Burst, Room
from vnic.errors import ConfigError
from vnic.link import Joint
from vnic.loop import Loop, Timer

from vnic_netmap.switch_kernel import MIXED, PORTS_MAX, Forwarding

FULL_S: Final = 0.010
"""How long frames wait for a port whose guest posts no room, before they are dropped."""

COUNTERS: Final = {
    "vale_to_all": "frames flooded: to a group, or to an address that no port has shown",
    "vale_waits": "bursts that had to wait for a full port",
    "vale_drop_full": "frames for this port dropped because its guest posted no room in time",
    "vale_drop_flood": "flooded frames for this port dropped because it was full",
    "vale_drop_nowhere": "frames from this port for an address that is behind it",
}


class Port:
    """One place at the switch.  Its link calls `send` and `recv`; the switch calls its link."""

    def __init__(self, switch: Switch, index: int, name: str, link: Joint) -> None:
        self.switch = switch
        self.index = index
        self.name = name
        self.link = link
        self.paused = False
        self._offered: Burst | None = None  # on loan from a sender, for the time of its send
        self._taken = 0
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._waiting: list[Port] = []  # senders that hold frames for this port
        self._timer: Timer | None = None
        self._stalled = False

    @property
    def full(self) -> bool:
        """Whether a frame for this port would have to wait."""
        return (self.paused or bool(self._queue)) and not self._stalled

    def send(self, burst: Burst) -> int:
        """Take frames from this port's guest to where they belong."""
        return self.switch.forward(self, burst)

    def recv(self, room: Room) -> int:
        """Deliver what was queued, then what a sender is offering."""
        n = 0
        while self._queue and room.put_frame(*self._queue[0]):
            self._queue.popleft()
            n += 1
        if self._offered is not None and not self._queue:
            taken = room.put(self._offered, self._taken)
            self._taken += taken
            n += taken
        if not room.full:
            self._has_room()
        return n

    def recv_discard(self) -> int:
        """Throw away what was queued, and what a sender is offering."""
        n = len(self._queue)
        self._queue.clear()
        if self._offered is not None:
            n += len(self._offered) - self._taken
            self._taken = len(self._offered)
        self._has_room()
        return n

    def offer(self, burst: Burst) -> int:
        """Have this port's guest take frames now; return how many it took, or refused for good."""
        if self._stalled:
            self.link.count("vale_drop_full", len(burst))
            return len(burst)
        self._offered, self._taken = burst, 0
        try:
            self.link.readable()
        finally:
            self._offered = None
        return self._taken

    def keep(self, frame: bytes, header: bytes) -> None:
        """Queue a copy: others already have frames that the sender sent after this one."""
        self._queue.append((frame, header))

    def wait(self, sender: Port) -> None:
        """``sender`` keeps frames for this port: tell it when there is room, or no more hope."""
        self.link.count("vale_waits")
        if sender not in self._waiting:
            self._waiting.append(sender)
        if self._timer is None:
            self._timer = self.link.timer(FULL_S, self._give_up)

    def close(self) -> None:
        """Leave.  Whoever waits for room here is let go."""
        self._queue.clear()
        self._has_room()

    def _has_room(self) -> None:
        self._stalled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _give_up(self) -> None:
        self._timer = None
        self._stalled = True
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for sender in waiting:
            sender.link.writable()


class Switch:
    """Ports, and the table of who is behind which."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self.loop = loop
        self.ports: dict[int, Port] = {}
        self._forwarding = Forwarding()
        self._lane = Burst()
        self._busy = False

    def add(self, name: str, link: Joint) -> Port:
        """Give a place at the switch.

        Raises: ConfigError, if the name is taken, all places are, or the link is on another loop.
        """
        if link.loop is not self.loop:
            raise ConfigError(
                f"{self.name}:{name}: all ports of an embedded switch live on one loop, and "
                f"{self.name} is on another; give this loop a switch of its own"
            )
        if any(port.name == name for port in self.ports.values()):
            raise ConfigError(f"{self.name}:{name}: this port is in use; give each NIC its own")
        free = (index for index in range(PORTS_MAX) if index not in self.ports)
        index = next(free, None)
        if index is None:
            raise ConfigError(f"{self.name}:{name}: all {PORTS_MAX} ports are in use")
        port = self.ports[index] = Port(self, index, name, link)
        return port

    def remove(self, port: Port) -> None:
        """Take a port out; what is addressed to those behind it is flooded from now on."""
        if self.ports.get(port.index) is port:
            del self.ports[port.index]
            self._forwarding.forget(port.index)
            port.close()

    def forward(self, sender: Port, burst: Burst) -> int:
        """Deliver a burst; return how many of its frames were taken."""
        if self._busy:
            # A port that is patched to another of this switch: frames would go round in a loop.
            sender.link.count("vale_drop_nowhere", len(burst))
            return len(burst)
        self._busy = True
        try:
            to = self._forwarding.route(burst, sender.index, int(time.monotonic()))
            if to == MIXED:
                return self._forward_mixed(sender, burst)
            port = self.ports[to]
            taken = 0 if port.full else port.offer(burst)
            if taken < len(burst):
                port.wait(sender)
            return taken
        finally:
            self._busy = False

    def _forward_mixed(self, sender: Port, burst: Burst) -> int:
        """Deliver to several ports, each its frames in order.

        The sender can keep only the end of a burst.  So it is cut before the first frame for a
        port that is full already; a port that fills up on the way has the rest of its frames
        queued by copy, and is full until it has delivered them.
        """
        forwarding, lane = self._forwarding, self._lane
        cut, waits_for = len(burst), None
        destinations = forwarding.destinations()
        for index, first in destinations:
            if first < cut and self.ports[index].full:
                cut, waits_for = first, self.ports[index]
        to_all = forwarding.n_to_all > 0
        ports = (
            [port for port in self.ports.values() if port is not sender]
            if to_all
            else [self.ports[index] for index, _ in destinations]
        )
        for port in ports:
            n = forwarding.select(burst, lane, port.index, cut, to_all)
            if n == 0:
                continue
            taken = 0 if port.full else port.offer(lane)
            if taken < n:
                unicast = forwarding.unicast(lane, taken)
                port.link.count("vale_drop_flood", n - taken - len(unicast))
                for i in unicast:
                    port.keep(bytes(lane[i]), lane.header(i))
        if to_all:
            sender.link.count("vale_to_all", forwarding.n_to_all)
        if forwarding.n_nowhere and waits_for is None:
            sender.link.count("vale_drop_nowhere", forwarding.n_nowhere)
        if waits_for is not None:
            waits_for.wait(sender)
        return cut
