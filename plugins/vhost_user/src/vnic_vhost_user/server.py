"""The plugin: one VMM at a time, and the NIC that it is shown."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
from vnic import config
from vnic.errors import ConfigError
from vnic.server import SocketServer
from vnic.sockets import SocketOptions

from vnic_vhost_user.session import Session

if TYPE_CHECKING:
    import socket

    from vnic.nic import Nic

log: Final = logging.getLogger("vnic.vhost_user")


@attrs.frozen(kw_only=True)
class ServerOptions(SocketOptions):
    """The socket, and what is offered on it."""

    config: bool = attrs.field(default=False, converter=config.boolean)
    """Offer the configuration space, for a VMM that takes MAC and MTU from there (crosvm); QEMU
    doesn't, and warns of it."""


class Plugin(SocketServer):
    """Shows a NIC to a VMM over vhost-user."""

    Options: ClassVar = ServerOptions
    options: ServerOptions

    def serve(self, nic: Nic) -> None:
        """Listen, or begin to connect, for the life of the NIC.

        Raises: ConfigError, BackendError.
        """
        if nic.vhost is None:
            raise ConfigError(
                f"{nic.name}: this frontend can't be served over vhost-user, which speaks virtio "
                f"only; serve it over vfio-user, or take the frontend virtio-net"
            )
        super().serve(nic)
        warn_of_options(nic, config_offered=self.options.config)

    def open_session(self, sock: socket.socket, nic: Nic) -> Session:
        """Begin to serve a VMM."""
        return Session(sock, nic, self, config=self.options.config)


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
