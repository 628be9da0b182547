"""Where a peer is, as it is written: a path, an IP address and a port, or a passed descriptor."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import re
import socket
from typing import Any, Final

import attrs
from vnic import config
from vnic.errors import BackendError, ConfigError
from vnic.sockets import PATH_MAX

FORMS: Final = (
    "write a path with a slash in it, or unix:PATH, or an IP address and a port, as in "
    "127.0.0.1:5000 or [::1]:5000"
)

_PASSED: Final = re.compile(r"fd=(.*)", re.DOTALL)
_INTERNET: Final = re.compile(r"(.*):([0-9]{1,5})", re.DOTALL)


@attrs.frozen
class Address:
    """A place that a socket can be bound or connected to."""

    family: socket.AddressFamily
    sockaddr: str | tuple[Any, ...]
    """As Python's sockets take it: a path, or host and port."""

    def __str__(self) -> str:
        if isinstance(self.sockaddr, str):
            return self.sockaddr
        host, port = self.sockaddr[:2]
        return f"[{host}]:{port}" if self.family is socket.AF_INET6 else f"{host}:{port}"

    @property
    def is_unix(self) -> bool:
        """A path, not an IP address."""
        return self.family is socket.AF_UNIX

    @property
    def is_multicast(self) -> bool:
        """A group of hosts, not one."""
        if self.is_unix:
            return False
        return ipaddress.ip_address(self.sockaddr[0]).is_multicast


@attrs.frozen
class Passed:
    """A descriptor, by its number: whoever started this process opened it."""

    fd: int

    def __str__(self) -> str:
        return f"fd={self.fd}"

    def open(self, kind: socket.SocketKind, name: str) -> socket.socket:
        """Return a socket of our own on what was passed; neither blocks from now on.

        It is a duplicate: the number stays its owner's.

        Raises: ConfigError, for what is no such socket, or has no peer; BackendError.
        """
        try:
            own = fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError as error:
            if error.errno == errno.EBADF:
                raise ConfigError(
                    f"{name}: this process has no descriptor {self.fd}; "
                    "have whoever starts it pass one on, and give its number"
                ) from None
            raise BackendError(
                f"{name}: cannot duplicate it: {error.strerror}; close what isn't needed"
            ) from None
        try:
            sock = socket.socket(fileno=own)
        except OSError:
            os.close(own)
            raise ConfigError(f"{name}: descriptor {self.fd} is no socket; pass one") from None
        try:
            if sock.type != kind:
                raise ConfigError(
                    f"{name}: descriptor {self.fd} is a {sock.type.name} socket; "
                    f"pass a {kind.name} one"
                )
            sock.getpeername()
            sock.setblocking(False)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise ConfigError(
                    f"{name}: this socket has no peer; connect it before it is passed"
                ) from None
            raise
        return sock


def parse(written: str) -> Address | Passed:
    """Read what was written.  No name is looked up: that would take its time while frames wait.

    Raises: ValueError, which says what is wrong and what to do.
    """
    if written.startswith("unix:"):
        return _unix(written.removeprefix("unix:"))
    if found := _PASSED.fullmatch(written):
        if not re.fullmatch("[0-9]{1,9}", found[1]):
            raise ValueError("no number of a descriptor; write it in decimal, as in fd=7")
        return Passed(int(found[1]))
    if "/" in written or written.startswith("~"):
        return _unix(written)
    if found := _INTERNET.fullmatch(written):
        return _internet(found[1], found[2])
    raise ValueError(f"neither a path nor an address; {FORMS}")


def parse_name(name: str, prefix: str) -> Address | Passed:
    """Read the name of a backend: ``stream:/run/passt.sock``.

    Raises: ConfigError.
    """
    try:
        return parse(name.removeprefix(f"{prefix}:"))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _unix(written: str) -> Address:
    if not written:
        raise ValueError(f"no path; {FORMS}")
    path = str(config.path(written))
    if len(os.fsencode(path)) > PATH_MAX:
        raise ValueError(f"a socket's path has at most {PATH_MAX} bytes; choose a shorter one")
    return Address(socket.AF_UNIX, path)


def _internet(host: str, port: str) -> Address:
    if not 0 < int(port) < 65536:
        raise ValueError(f"{port} is no port; give one from 1 to 65535")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if inner == host and ":" in host:
        raise ValueError(f"put an IPv6 address in brackets, as in [{host}]:{port}")
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(inner, port, type=socket.SOCK_STREAM, flags=numeric)
    except (OSError, UnicodeError):
        found = []
    if not inner or not found or (inner != host) != (found[0][0] is socket.AF_INET6):
        raise ValueError(f'"{inner}" is no IP address, and names are not looked up; {FORMS}')
    return Address(found[0][0], found[0][4])
