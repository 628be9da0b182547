"""The plugin: one VMM at a time, and the NIC that it is shown."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, ClassVar, Final

import attrs
from vnic.errors import ConfigError
from vnic.memory import Memory
from vnic.sockets import SocketOptions, VmmSocket

from vnic_vfio_user.session import Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vnic.loop import Loop
    from vnic.nic import Nic

log: Final = logging.getLogger("vnic.vfio_user")


@attrs.frozen(kw_only=True)
class ServerOptions(SocketOptions):
    """The socket, and no more."""


class Plugin:
    """Shows a NIC to a VMM over vfio-user."""

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
        if nic.pci is None:
            raise ConfigError(
                f"{nic.name}: this frontend can't be served over vfio-user, which speaks PCI only; "
                f"serve it over vhost-user, or take the frontend e1000"
            )
        self._nic = nic
        self.vmm_socket = VmmSocket(
            self.options, self.loop, nic.name, begin=self._begin, make_way=self._make_way
        )
        self.vmm_socket.open()

    def close(self) -> None:
        """End the session and remove the socket.  Twice is allowed."""
        if self.vmm_socket is not None:
            self.vmm_socket.close()
        if self._session is not None:
            self._session.end("the NIC is closed")

    # ---- Host ------------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """Interrupt by message."""
        if self._session is not None:
            self._session.interrupt(vector)

    def set_irq(self, level: bool) -> None:
        """Set the level of the pin."""
        if self._session is not None:
            self._session.set_irq(level)

    def schedule(self, callback: Callable[[], None]) -> None:
        """Have the callback called soon, once however often it was asked for."""
        self.loop.schedule(callback)

    def failed(self, reason: str) -> None:
        """Tell the log that the guest's driver broke the device."""
        name = self._nic.name if self._nic is not None else str(self.options.path)
        log.error("%s: stopped until the driver resets it: %s", name, reason)
        if self._session is not None:
            self._session.failed(reason)

    # ---- sessions --------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket) -> None:
        assert self._nic is not None
        self._session = Session(sock, self._nic, self.memory, self.loop, ended=self._ended)

    def _make_way(self) -> bool:
        if self._session is not None and self._session.gone:
            self._session.end("the VMM closed the connection, and another one is here")
        return self._session is None

    def _ended(self, session: Session) -> None:
        self._session = None
        if self.vmm_socket is not None:
            self.vmm_socket.ended(served=session.served)
