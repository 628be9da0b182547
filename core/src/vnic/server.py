"""A server on a UNIX socket: one VMM at a time, and the NIC that it is shown.

What every such server does is here and in `vnic.session`; a protocol adds what is said.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

from vnic.memory import Memory
from vnic.sockets import SocketOptions, VmmSocket

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vnic.loop import Loop
    from vnic.nic import Nic
    from vnic.session import SocketSession

log: Final = logging.getLogger("vnic.server")


class SocketServer:
    """Shows a NIC to a VMM: a `vnic.hookspecs.Server`, and the NIC's host.

    A server of your own says in `open_session` how, and refuses in `serve` a NIC that lacks the
    face it speaks::

        class Plugin(SocketServer):
            def serve(self, nic):
                if nic.vhost is None:
                    raise ConfigError(...)
                super().serve(nic)

            def open_session(self, sock, nic):
                return Session(sock, nic, self)
    """

    Options: ClassVar[Any] = SocketOptions

    def __init__(self, options: SocketOptions, loop: Loop) -> None:
        self.options = options
        self.loop = loop
        self.memory = Memory()
        self.vmm_socket: VmmSocket | None = None
        """Where VMMs come from; None before `serve`."""
        self._nic: Nic | None = None
        self._session: SocketSession | None = None

    def open_session(self, sock: socket.socket, nic: Nic) -> SocketSession:
        """Begin to serve a VMM that is connected; the session owns its socket."""
        raise NotImplementedError

    # ---- Server ----------------------------------------------------------------------------------

    def serve(self, nic: Nic) -> None:
        """Listen, or begin to connect, for the life of the NIC.

        Raises: ConfigError, BackendError.
        """
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
        """Raise a message-signalled interrupt, or a queue's."""
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
        """Tell the log, and the VMM where it can be told, that the driver broke the device."""
        name = self._nic.name if self._nic is not None else str(self.options.path)
        log.error("%s: stopped until the driver resets it: %s", name, reason)
        if self._session is not None:
            self._session.failed(reason)

    # ---- sessions --------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket) -> None:
        assert self._nic is not None
        self._session = self.open_session(sock, self._nic)
        self._session.on_ended = self._ended

    def _make_way(self) -> bool:
        if self._session is not None and self._session.gone:
            self._session.end("the VMM closed the connection, and another one is here")
        return self._session is None

    def _ended(self) -> None:
        session, self._session = self._session, None
        if session is not None and self.vmm_socket is not None:
            self.vmm_socket.ended(served=session.served)
