"""The plugin: one VMM at a time, and the NIC that it is shown."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
from vnic import config
from vnic.errors import ConfigError
from vnic.memory import Memory
from vnic.sockets import SocketOptions, VmmSocket

from vnic_vhost_user.session import Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vnic.loop import Loop
    from vnic.nic import Nic

log: Final = logging.getLogger("vnic.vhost_user")


@attrs.frozen(kw_only=True)
class ServerOptions(SocketOptions):
    """The socket, and what is offered on it."""

    config: bool = attrs.field(default=False, converter=config.boolean)
    """Offer the configuration space, for a VMM that takes MAC and MTU from there (crosvm); QEMU
    doesn't, and warns of it."""


class Plugin:
    """Shows a NIC to a VMM over vhost-user."""

    Options: ClassVar = ServerOptions

    def __init__(self, options: ServerOptions, loop: Loop) -> None:
        self.options = options
        self.loop = loop
        self.memory = Memory()
        self._nic: Nic | None = None
        self.vmm_socket: VmmSocket | None = None
        self._session: Session | None = None

    # ---- Server ----------------------------------------------------------------------------------

    def serve(self, nic: Nic) -> None:
        """Listen, or begin to connect, for the life of the NIC.

        Raises: ConfigError, BackendError.
        """
        if nic.vhost is None:
            raise ConfigError(
                f"{nic.name}: this frontend can't be served over vhost-user, which speaks virtio "
                f"only; serve it over vfio-user, or take the frontend virtio-net"
            )
        self._nic = nic
        self.vmm_socket = VmmSocket(
            self.options, self.loop, nic.name, begin=self._begin, make_way=self._make_way
        )
        self.vmm_socket.open()
        warn_of_options(nic, config_offered=self.options.config)

    def close(self) -> None:
        """End the session and remove the socket.  Twice is allowed."""
        if self.vmm_socket is not None:
            self.vmm_socket.close()
        if self._session is not None:
            self._session.end("the NIC is closed")

    # ---- Host ------------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """Interrupt for a queue: vhost knows no other vectors."""
        if self._session is not None:
            self._session.interrupt(vector)

    def set_irq(self, level: bool) -> None:
        """Do nothing: a vhost device has no pin."""

    def schedule(self, callback: Callable[[], None]) -> None:
        """Have the callback called soon, once however often it was asked for."""
        self.loop.schedule(callback)

    def failed(self, reason: str) -> None:
        """Tell log and VMM that the guest's driver broke the device."""
        name = self._nic.name if self._nic is not None else str(self.options.path)
        log.error("%s: stopped until the driver resets it: %s", name, reason)
        if self._session is not None:
            self._session.failed(reason)

    # ---- sessions --------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket) -> None:
        assert self._nic is not None
        self._session = Session(
            sock,
            self._nic,
            self.memory,
            self.loop,
            config=self.options.config,
            ended=self._ended,
        )

    def _make_way(self) -> bool:
        if self._session is not None and self._session.gone:
            self._session.end("the VMM closed the connection, and another one is here")
        return self._session is None

    def _ended(self, session: Session) -> None:
        self._session = None
        if self.vmm_socket is not None:
            self.vmm_socket.ended(served=session.served)


def warn_of_options(nic: Nic, *, config_offered: bool) -> None:
    """Say once which options can't reach the guest: the VMM tells it these things.

    An option counts as given when it isn't its default.
    """
    cls = type(nic.options)
    given = {
        field.name: value
        for field in (attrs.fields(cls) if attrs.has(cls) else ())
        if (value := getattr(nic.options, field.name)) is not None and value != field.default
    }
    keys = {"mac": "mac", "mtu": "host_mtu"}
    texts = {key: f"{theirs}={_text(given[key])}" for key, theirs in keys.items() if key in given}
    if texts and not config_offered:
        log.warning(
            "%s: over vhost-user the VMM tells the guest its %s; give the VMM the same: "
            "-device virtio-net-pci,%s,netdev=...",
            nic.name,
            " and ".join(key.upper() for key in texts),
            ",".join(texts.values()),
        )


def _text(value: Any) -> str:
    return value.hex(":") if isinstance(value, bytes) else str(value)
