"""``vale0:1``: a port of a switch, the kernel's own or one that is embedded in the process."""

from __future__ import annotations

import logging
import re
from typing import Final

import attrs
from vnic import ConfigError, Features, config, hookimpl
from vnic.burst import Burst, Room
from vnic.errors import BackendError
from vnic.link import Joint

from vnic_netmap import system
from vnic_netmap.abi import NrFlag
from vnic_netmap.embedded import Embedded
from vnic_netmap.names import parse
from vnic_netmap.netmap import Netmap
from vnic_netmap.options import NetmapOptions
from vnic_netmap.port import not_opened

log = logging.getLogger("vnic.netmap")

_NAME: Final = re.compile(r"(vale[A-Za-z0-9_]*):([A-Za-z0-9_.-]+)")
_MORE: Final = re.compile(r"[@/{}]")
"""What begins a suffix or a pipe, which only the kernel's ports have."""


def _engine(value: object) -> str:
    return config.choice("auto", "kernel", "embedded")(value)


def _full(value: object) -> str | None:
    return None if value is None else config.choice("wait", "drop")(value)


@attrs.frozen(kw_only=True)
class ValeOptions:
    """What a port of a switch takes."""

    engine: str = attrs.field(default="auto", converter=_engine)
    """Whose switch: the netmap module's, which other programs can reach; one inside the process,
    which needs no permission; or, ``auto``, the module's where ``/dev/netmap`` can be opened."""
    full: str | None = attrs.field(default=None, converter=_full)
    """What becomes of a unicast frame for this port while its guest has no room: it waits with its
    sender, 10 ms at the most, as by default; or is dropped at once, as the kernel's VALE does.
    Only an embedded switch can be told."""


class _Kernel(Netmap):
    """A port of the kernel's switch, with the hooks that an embedded one has besides."""

    def recv_enable(self) -> None:
        """The link watches the descriptor again."""

    def recv_disable(self) -> None:
        """The link watches it no more."""


class Vale:
    """The backend behind ``vale``."""

    Options = ValeOptions

    _port: Embedded | _Kernel
    """The link calls nothing before ``init`` and after ``cleanup``."""

    @hookimpl
    def init(self, name: str, options: ValeOptions, link: Joint) -> None:
        """Take a port at the switch; the first one brings the switch about."""
        match = _NAME.fullmatch(name)
        if match is None:
            also = (
                f'; or write "netmap:{name}" for a port of the kernel\'s'
                if _MORE.search(name)
                else ""
            )
            raise ConfigError(f'{name}: not a port of a switch; write "vale0:1", SWITCH:PORT{also}')
        if _is_for_kernel(name, options):
            port = _Kernel()
            # Alone, as on an embedded switch: two NICs on the same rings would garble both.
            own = attrs.evolve(parse(name), flags=NrFlag.EXCLUSIVE)
            port.open(name, own, NetmapOptions(), link)
            self._port = port
        else:
            self._port = Embedded(match[1], match[2], link, drops=options.full == "drop")

    @hookimpl
    def cleanup(self) -> None:
        """Leave the switch; the last one takes it away."""
        if hasattr(self, "_port"):  # not before init, nor after one that failed
            self._port.cleanup()

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Deliver the frames."""
        return self._port.send(burst)

    @hookimpl
    def recv(self, room: Room) -> int:
        """Deliver what waits for this port, or is being sent to it."""
        return self._port.recv(room)

    @hookimpl
    def recv_discard(self) -> int:
        """Throw away what waits for this port."""
        return self._port.recv_discard()

    @hookimpl
    def recv_enable(self) -> None:
        """The guest has room."""
        self._port.recv_enable()

    @hookimpl
    def recv_disable(self) -> None:
        """The guest has none: this port is full."""
        self._port.recv_disable()

    @hookimpl
    def get_capabilities(self) -> Features:
        """Return what the engine has."""
        return self._port.get_capabilities()


def _is_for_kernel(name: str, options: ValeOptions) -> bool:
    """Decide on the engine, and say so.

    Raises: ConfigError or BackendError, where the kernel's is asked for and can't be.
    """
    if options.engine == "kernel" and options.full is not None:
        raise ConfigError(
            f"{name}: full={options.full}: only an embedded switch can be told what to do with "
            f"frames for a full port; leave it out, or give engine=embedded"
        )
    if options.engine == "embedded" or options.full is not None:
        log.info("%s: on an embedded switch, as asked for", name)
        return False
    try:
        system.current.close(system.current.open())
    except OSError as error:
        why = not_opened(name, error)
        if options.engine == "kernel":
            raise BackendError(f"{why}; or give engine=embedded") from None
        log.info("%s; so it is on an embedded switch", why)
        return False
    log.info("%s: on the kernel's switch", name)
    return True
