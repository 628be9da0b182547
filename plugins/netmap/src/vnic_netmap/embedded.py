"""The embedded engine behind ``vale``: a port of a switch inside the process."""

from __future__ import annotations

from vnic.burst import Burst, Room
from vnic.features import OFFLOADS, Features
from vnic.link import Joint

from vnic_netmap.switch import Port, Switch

switches: dict[str, Switch] = {}
"""Those that have ports, by name.  A switch is there from its first port to its last."""


class Embedded:
    """A port of an embedded switch."""

    def __init__(self, switch: str, port: str, link: Joint, *, drops: bool) -> None:
        """Take a port; the first one brings the switch about.  ``drops``: as `Switch.add` has it.

        Raises: ConfigError.
        """
        own = switches.get(switch) or Switch(switch, link.loop)
        self._port: Port = own.add(port, link, drops=drops)
        switches[switch] = own

    def cleanup(self) -> None:
        """Leave the switch; the last one takes it away."""
        switch = self._port.switch
        switch.remove(self._port)
        if not switch.ports and switches.get(switch.name) is switch:
            del switches[switch.name]

    def send(self, burst: Burst) -> int:
        """Deliver the frames, from the sender's memory into the receivers'."""
        port = self._port
        return port.switch.forward(port, burst)

    def recv(self, room: Room) -> int:
        """Deliver what waits for this port, or is being sent to it."""
        return self._port.recv(room)

    def recv_discard(self) -> int:
        """Throw away what waits for this port."""
        return self._port.recv_discard()

    def recv_enable(self) -> None:
        """The guest has room."""
        self._port.enable()

    def recv_disable(self) -> None:
        """The guest has none: this port is full."""
        self._port.disable()

    def get_capabilities(self) -> Features:
        """Return all: frames cross as they are, and each receiver's room does what it lacks."""
        return OFFLOADS
