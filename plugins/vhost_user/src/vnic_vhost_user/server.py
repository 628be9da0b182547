"""The plugin: has the socket, and one VMM on it at a time."""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import attrs
from vnic import config
from vnic.errors import BackendError, ConfigError
from vnic.memory import Memory

from vnic_vhost_user.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnic.loop import Loop, Timer, Watch
    from vnic.nic import Nic

log: Final = logging.getLogger("vnic.vhost_user")

PATH_MAX: Final = 107
"""Bytes of a UNIX socket's path: sun_path has 108, the last one 0.  Spec: unix(7)."""

BACKLOG: Final = 4
"""VMMs that wait to be refused."""

BACK_OFF_MAX_S: Final = 30.0
"""The longest wait between two attempts, unless ``reconnect`` is longer."""


def seconds(value: object) -> float:
    """Take a time in seconds, more than none."""
    try:
        number = float(value)  # type: ignore[arg-type]  # what it can't take, it says
    except (TypeError, ValueError):
        raise ValueError("not a number of seconds; write one, as in 0.5") from None
    if not 0 < number < math.inf:
        raise ValueError("not a time to wait; give more than 0 seconds")
    return number


def mode(value: object) -> str:
    """Take server or client."""
    return config.choice("server", "client")(value)


@attrs.frozen(kw_only=True)
class ServerOptions:
    """Where the VMM is, and who calls whom."""

    path: Path = attrs.field(converter=config.path)
    """The UNIX socket."""
    mode: str = attrs.field(default="server", converter=mode)
    """server: listen, and the VMM connects; client: connect to a VMM that listens."""
    reconnect: float = attrs.field(default=1.0, converter=seconds)
    """Of a client: seconds until it tries again; twice as many after each failure."""
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
        self._path = str(options.path)
        self._nic: Nic | None = None
        self._session: Session | None = None
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._watch: Watch | None = None
        self._timer: Timer | None = None
        self._delay_s = options.reconnect
        self._said = ""

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
        if len(os.fsencode(self._path)) > PATH_MAX:
            raise ConfigError(
                f"{self._path}: a socket's path has at most {PATH_MAX} bytes; choose a shorter one"
            )
        self._nic = nic
        warn_of_options(nic, config_offered=self.options.config)
        if self.options.mode == "client":
            self._connect()
        else:
            self._listener = self._listen()
            log.info("%s: listening on %s", nic.name, self._path)
            self._watch = self.loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """End the session and remove the socket.  Twice is allowed."""
        self._nic, nic = None, self._nic
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self._remove()
        if self._session is not None and nic is not None:
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
        name = self._nic.name if self._nic is not None else self._path
        log.error("%s: stopped until the driver resets it: %s", name, reason)
        if self._session is not None:
            self._session.failed(reason)

    # ---- sessions --------------------------------------------------------------------------------

    def _begin(self, sock: socket.socket) -> None:
        assert self._nic is not None
        log.info("%s: VMM connected%s", self._nic.name, _peer(sock))
        self._session = Session(
            sock,
            self._nic,
            self.memory,
            self.loop,
            config=self.options.config,
            ended=self._ended,
        )

    def _ended(self, session: Session) -> None:
        self._session = None
        if session.served:
            self._delay_s = self.options.reconnect
        if self._nic is not None and self.options.mode == "client":
            self._retry()

    # ---- server mode -----------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            try:
                listener.bind(self._path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale()
                listener.bind(self._path)
            listener.listen(BACKLOG)
            status = os.lstat(self._path)
            self._inode = status.st_dev, status.st_ino
        except OSError as error:
            listener.close()
            raise _no_socket(self._path, error) from error
        except ConfigError:
            listener.close()
            raise
        return listener

    def _remove_stale(self) -> None:
        """Remove what a process that was killed has left, once it is sure that it was left."""
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise ConfigError(
                    f"{self._path}: exists and is not a socket; choose another path, or remove it"
                )
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
                probe.connect(self._path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            log.info("%s: left by a process that is gone; removed", self._path)
            Path(self._path).unlink(missing_ok=True)
            return
        except BlockingIOError:  # its backlog is full
            pass
        raise OSError(errno.EADDRINUSE, "another process listens on it")

    def _remove(self) -> None:
        try:
            status = os.lstat(self._path)
            if self._inode == (status.st_dev, status.st_ino):
                Path(self._path).unlink()
        except OSError as error:
            log.debug("%s: not removed: %s", self._path, error.strerror)

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        assert self._nic is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptors left: it would stay readable, and spin
            log.error("%s: can't accept a VMM: %s", self._nic.name, error.strerror)
            self._rest()
            return
        if self._session is not None and self._session.gone:
            # A VMM that was started again may be here before its predecessor's end is.
            self._session.end("the VMM closed the connection, and another one is here")
        if self._session is not None:
            log.warning("%s: a second VMM%s is refused", self._nic.name, _peer(sock))
            sock.close()
            return
        self._begin(sock)

    def _rest(self) -> None:
        assert self._watch is not None
        self._watch.set(read=False)
        watch = self._watch
        self._timer = self.loop.timer(self.options.reconnect, lambda: watch.set(read=True))

    # ---- client mode -----------------------------------------------------------------------------

    def _connect(self) -> None:
        assert self._nic is not None
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            if self._said != str(error.strerror):
                self._said = str(error.strerror)
                log.warning(
                    "%s: no VMM at %s: %s; trying again until there is",
                    self._nic.name,
                    self._path,
                    error.strerror,
                )
            self._retry()
        else:
            self._said = ""
            self._begin(sock)

    def _retry(self) -> None:
        self._timer = self.loop.timer(self._delay_s, self._connect)
        self._delay_s = min(2 * self._delay_s, max(BACK_OFF_MAX_S, self.options.reconnect))


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


def _peer(sock: socket.socket) -> str:
    """Return `` (process 123)``, where the kernel tells."""
    try:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except OSError:
        return ""
    pid, _, _ = struct.unpack("iII", credentials)
    return f" (process {pid})" if pid else ""


def _no_socket(path: str, error: OSError) -> ConfigError | BackendError:
    folder = Path(path).parent
    match error.errno:
        case errno.EADDRINUSE:
            return BackendError(
                f"{path}: another process listens on it; stop that one, or choose another path"
            )
        case errno.ENOENT | errno.ENOTDIR:
            return ConfigError(f"{path}: there is no folder {folder}; create it: mkdir -p {folder}")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return BackendError(
                f"{path}: this user may not create or connect to it: {error.strerror}; choose a "
                f"folder that it may write to"
            )
    return BackendError(f"{path}: can't have the socket: {error.strerror}")
