"""The embedded VALE: a learning switch inside the process.

All ports live on one loop, so a frame is delivered inside ``send``: the receiver's room takes it
straight from the sender's memory, and it is copied once.  What a receiver can't take now stays
with the sender, if that is possible without holding up others; else it is queued by copy, a
burst at the most, or dropped and counted.
"""

from __future__ import annotations

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
    "vale_drop_full": "frames for this port dropped because its guest had posted no room in time",
    "vale_drop_flood": "flooded frames for this port dropped because it was full",
    "vale_drop_left": "frames queued for this port when it left the switch",
    "vale_drop_nowhere": "frames from this port for an address that is behind it",
    "vale_drop_loop": "frames that came back to the switch while it was delivering",
}


class Port:
    """One place at the switch, as the other ports see it: what they bring, its link is told of."""

    def __init__(self, switch: Switch, index: int, name: str, link: Joint, drops: bool) -> None:
        self.switch = switch
        self.index = index
        self.name = name
        self.link = link
        self._drops = drops
        self._paused = False
        self._offered: Burst | None = None  # on loan from a sender, for the time of its send
        self._taken = 0
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._waiting: list[Port] = []  # senders that hold frames for this port
        self._timer: Timer | None = None
        self._full_since: float | None = None  # when a sender began to wait, and no frame got in
        self._stalled = drops  # drop, and hold up nobody: since then it was too long, or always
        self._turn = 0  # the index from which on senders are let go

    @property
    def full(self) -> bool:
        """Whether a frame for this port would have to wait."""
        return (self._paused or bool(self._queue)) and not self._stalled

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
        if n:
            self._full_since, self._stalled = None, self._drops
        if not room.full and (self._waiting or self._timer is not None):
            self._has_room()
        return n

    def recv_discard(self) -> int:
        """Throw away what was queued, and what a sender is offering."""
        n = len(self._queue)
        self._queue.clear()
        if self._offered is not None:
            n += len(self._offered) - self._taken
            self._taken = len(self._offered)
        self._full_since, self._stalled = None, self._drops
        self._has_room()
        return n

    def enable(self) -> None:
        """The guest may have room again: give it what was queued, let the senders go."""
        self._paused = False
        if self._queue:
            self.link.readable()
        else:
            self._has_room()

    def disable(self) -> None:
        """The guest has no room."""
        self._paused = True

    def offer(self, burst: Burst) -> int:
        """Have this port's guest take frames now; return how many it took, or refused for good."""
        self._offered, self._taken = burst, 0
        try:
            if not self._paused and not self._queue:
                self.link.readable()
        finally:
            self._offered = None
        if self._stalled:
            self.link.count("vale_drop_full", len(burst) - self._taken)
            return len(burst)
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
            # From when the first frame waited, whatever the guest says since: one that only
            # claims to have room would hold up its senders for ever.
            now = self.switch.loop.clock()
            if self._full_since is None:
                self._full_since = now
            delay_s = max(0.0, self._full_since + FULL_S - now)
            self._timer = self.switch.loop.timer(delay_s, self._give_up)

    def close(self) -> None:
        """Leave.  Whoever waits for room here is let go, and what still comes is dropped."""
        if self._queue:
            self.link.count("vale_drop_left", len(self._queue))
        self._queue.clear()
        self._has_room()
        self._paused = self._stalled = True

    def _has_room(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def _give_up(self) -> None:
        self._timer = None
        self._stalled = True
        self._wake()

    def _wake(self) -> None:
        """Tell those who wait, each time another one first: the first may take all the room."""
        if not self._waiting:
            return
        if self.switch.busy:
            # Not from within a send: who is told may send at once, and that would look like a loop.
            self.switch.loop.schedule(self._wake)
            return
        waiting, self._waiting = self._waiting, []
        waiting.sort(key=lambda sender: (sender.index - self._turn) % PORTS_MAX)
        self._turn = waiting[0].index + 1
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
        self.busy = False
        """Whether frames are being delivered just now."""

    def add(self, name: str, link: Joint, *, drops: bool = False) -> Port:
        """Give a place at the switch.

        ``drops``: a frame that finds the port full is dropped at once, where it would wait.

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
        port = self.ports[index] = Port(self, index, name, link, drops)
        return port

    def remove(self, port: Port) -> None:
        """Take a port out; what is addressed to those behind it is flooded from now on."""
        if self.ports.get(port.index) is port:
            del self.ports[port.index]
            self._forwarding.forget(port.index)
            port.close()

    def forward(self, sender: Port, burst: Burst) -> int:
        """Deliver a burst; return how many of its frames were taken."""
        if self.busy:
            # A port that is patched to another of this switch: frames would go round in a loop.
            sender.link.count("vale_drop_loop", len(burst))
            return len(burst)
        self.busy = True
        try:
            to = self._forwarding.route(burst, sender.index, int(self.loop.clock()))
            if to == MIXED:
                return self._forward_mixed(sender, burst)
            port = self.ports[to]
            taken = 0 if port.full else port.offer(burst)
            if taken < len(burst):
                port.wait(sender)
            return taken
        finally:
            self.busy = False

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
        n_to_all, n_nowhere = forwarding.tally(cut)
        to_all = n_to_all > 0
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
                if n - taken > len(unicast):
                    port.link.count("vale_drop_flood", n - taken - len(unicast))
                for i in unicast:
                    port.keep(bytes(lane[i]), lane.header(i))
        if n_to_all:
            sender.link.count("vale_to_all", n_to_all)
        if n_nowhere:
            sender.link.count("vale_drop_nowhere", n_nowhere)
        if waits_for is not None:
            waits_for.wait(sender)
        return cut
