"""``vale0:1``: a port of a switch.  The switch is embedded in the process."""

from __future__ import annotations

import re
from typing import Final

import attrs
from vnic import ConfigError, Features, config, hookimpl
from vnic.burst import Burst, Room
from vnic.features import OFFLOADS
from vnic.link import Joint

from vnic_netmap.switch import Port, Switch

_NAME: Final = re.compile(r"(vale[A-Za-z0-9_]*):([A-Za-z0-9_.-]+)")

_switches: dict[str, Switch] = {}
"""Those that have ports, by name.  A switch is there from its first port to its last."""


def _full(value: object) -> str:
    return config.choice("wait", "drop")(value)


@attrs.frozen(kw_only=True)
class ValeOptions:
    """What a port of a switch takes."""

    full: str = attrs.field(default="wait", converter=_full)
    """What becomes of a unicast frame for this port while its guest has no room: it waits with its
    sender, 10 ms at the most, or is dropped at once, as the kernel's VALE does."""


class Vale:
    """The backend behind ``vale``."""

    Options = ValeOptions

    _open: Port
    """This port; the link calls nothing before ``init`` and after ``cleanup``."""

    def __init__(self) -> None:
        self._port: Port | None = None

    @hookimpl
    def init(self, name: str, options: ValeOptions, link: Joint) -> None:
        """Take a port at the switch; the first one brings the switch about."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ConfigError(f'{name}: not a port of a switch; write "vale0:1", SWITCH:PORT')
        switch = _switches.get(match[1]) or Switch(match[1], link.loop)
        self._port = self._open = switch.add(match[2], link, drops=options.full == "drop")
        _switches[match[1]] = switch

    @hookimpl
    def cleanup(self) -> None:
        """Leave the switch; the last one takes it away."""
        port, self._port = self._port, None
        if port is not None:
            port.switch.remove(port)
            if not port.switch.ports:
                _switches.pop(port.switch.name, None)

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Deliver the frames, from the sender's memory into the receivers'."""
        port = self._open
        return port.switch.forward(port, burst)

    @hookimpl
    def recv(self, room: Room) -> int:
        """Deliver what waits for this port, or is being sent to it."""
        return self._open.recv(room)

    @hookimpl
    def recv_discard(self) -> int:
        """Throw away what waits for this port."""
        return self._open.recv_discard()

    @hookimpl
    def recv_enable(self) -> None:
        """The guest has room."""
        self._open.enable()

    @hookimpl
    def recv_disable(self) -> None:
        """The guest has none: this port is full."""
        self._open.disable()

    @hookimpl
    def get_capabilities(self) -> Features:
        """Return all: frames cross as they are, and each receiver's room does what it lacks."""
        return OFFLOADS
