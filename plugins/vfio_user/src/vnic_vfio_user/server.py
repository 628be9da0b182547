"""The plugin: one VMM at a time, and the NIC that it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import attrs
from vnic.errors import ConfigError
from vnic.server import SocketServer
from vnic.sockets import SocketOptions

from vnic_vfio_user.session import Session

if TYPE_CHECKING:
    import socket

    from vnic.nic import Nic


@attrs.frozen(kw_only=True)
class ServerOptions(SocketOptions):
    """The socket, and no more."""


class Plugin(SocketServer):
    """Shows a NIC to a VMM over vfio-user."""

    Options: ClassVar = ServerOptions

    def serve(self, nic: Nic) -> None:
        """Listen, or begin to connect, for the life of the NIC.

        Raises: ConfigError, BackendError.
        """
        if nic.pci is None:
            raise ConfigError(
                f"{nic.name}: this frontend can't be served over vfio-user, which speaks PCI only; "
                f"serve it over vhost-user, or take the frontend e1000"
            )
        super().serve(nic)

    def open_session(self, sock: socket.socket, nic: Nic) -> Session:
        """Begin to serve a VMM."""
        return Session(sock, nic, self)
