"""The UNIX socket that a server and a VMM meet at: either listens, the other connects.

What every server does with it is here; what is said on it is the server's own.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from vnic import config
from vnic.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from vnic.loop import Loop, Timer, Watch

log: Final = logging.getLogger("vnic.sockets")

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
class SocketOptions:
    """Where the VMM is, and who calls whom; a server's options begin with these."""

    path: Path = attrs.field(converter=config.path)
    """The UNIX socket."""
    mode: str = attrs.field(default="server", converter=mode)
    """server: listen, and the VMM connects; client: connect to a VMM that listens."""
    reconnect: float = attrs.field(default=1.0, converter=seconds)
    """Of a client: seconds until it tries again; twice as many after each failure."""


class SocketFile:
    """The name that a UNIX socket has in the file system, from `bind` to `remove`.

    Only a name is removed that is known to be nobody's any more, or our own.
    """

    def __init__(self, path: str) -> None:
        """Raises: ConfigError, for a path that no socket can have."""
        if len(os.fsencode(path)) > PATH_MAX:
            raise ConfigError(
                f"{path}: a socket's path has at most {PATH_MAX} bytes; choose a shorter one"
            )
        self.path = path
        self._inode: tuple[int, int] | None = None

    def bind(self, sock: socket.socket) -> None:
        """Give the name to a socket; one that a process left which was killed is taken over.

        Raises: ConfigError, BackendError.
        """
        try:
            try:
                sock.bind(self.path)
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                self._remove_stale(sock.type)
                sock.bind(self.path)
            status = os.lstat(self.path)
            self._inode = status.st_dev, status.st_ino
        except OSError as error:
            raise _no_socket(self.path, error) from error

    def remove(self) -> None:
        """Remove the name, unless it is another's by now.  Twice is allowed."""
        try:
            status = os.lstat(self.path)
            if self._inode == (status.st_dev, status.st_ino):
                Path(self.path).unlink()
        except OSError as error:
            log.debug("%s: not removed: %s", self.path, error.strerror)

    def _remove_stale(self, kind: socket.SocketKind) -> None:
        """Remove what a process that was killed has left, once it is sure that it was left."""
        try:
            if not stat.S_ISSOCK(os.lstat(self.path).st_mode):
                raise ConfigError(
                    f"{self.path}: exists and is not a socket; choose another path, or remove it"
                )
            with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
                probe.connect(self.path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            log.info("%s: left by a process that is gone; removed", self.path)
            Path(self.path).unlink(missing_ok=True)
            return
        except OSError as error:  # its backlog is full, or it is a socket of another kind
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
        raise OSError(errno.EADDRINUSE, "another process listens on it")


class VmmSocket:
    """Where VMMs come from, one at a time.

    ``begin`` is given each one's socket, and owns it.  ``make_way`` is asked before, in server
    mode: it says whether the VMM before is gone for good, and ends that one's session if it is; a
    VMM that was started again may be here before its predecessor's end is.
    """

    def __init__(
        self,
        options: SocketOptions,
        loop: Loop,
        name: str,
        *,
        begin: Callable[[socket.socket], None],
        make_way: Callable[[], bool],
    ) -> None:
        self.options = options
        self.loop = loop
        self._name = name
        self._begin = begin
        self._make_way = make_way
        self._path = str(options.path)
        self._listener: socket.socket | None = None
        self._file: SocketFile | None = None
        self._watch: Watch | None = None
        self._timer: Timer | None = None
        self.delay_s = options.reconnect
        """Of a client: how long it waits before it tries again."""
        self._said = ""
        self._refused = False  # somebody, since the VMM that is here has come
        self._open = False

    def open(self) -> None:
        """Listen, or begin to connect.

        Raises: ConfigError, BackendError.
        """
        file = SocketFile(self._path)
        self._open = True
        if self.options.mode == "client":
            self._connect()
        else:
            self._listener = self._listen(file)
            self._file = file
            log.info("%s: listening on %s", self._name, self._path)
            self._watch = self.loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Begin no more, and remove the socket.  Twice is allowed."""
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._file is not None:
            self._file.remove()

    def ended(self, *, served: bool) -> None:
        """A session is over: a client tries again, sooner if the VMM spoke the protocol."""
        if served:
            self.delay_s = self.options.reconnect
        if self._open and self.options.mode == "client":
            self._retry()

    # ---- server mode -----------------------------------------------------------------------------

    def _listen(self, file: SocketFile) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            file.bind(listener)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            file.remove()
            raise
        return listener

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptors left: it would stay readable, and spin
            log.error("%s: can't accept a VMM: %s", self._name, error.strerror)
            self._rest()
            return
        if not self._make_way():
            if not self._refused:
                more = "; others while this one stays are not logged"
                log.warning("%s: a second VMM%s is refused%s", self._name, _peer(sock), more)
            self._refused = True
            sock.close()
            return
        self._meet(sock)

    def _meet(self, sock: socket.socket) -> None:
        self._refused = False
        log.info("%s: VMM connected%s", self._name, _peer(sock))
        try:
            self._begin(sock)
        except Exception:
            log.exception("%s: its session can't begin", self._name)
            sock.close()
            self.ended(served=False)

    def _rest(self) -> None:
        assert self._watch is not None
        self._watch.set(read=False)
        watch = self._watch
        self._timer = self.loop.timer(self.options.reconnect, lambda: watch.set(read=True))

    # ---- client mode -----------------------------------------------------------------------------

    def _connect(self) -> None:
        sock: socket.socket | None = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.connect(self._path)
        except OSError as error:
            if sock is not None:
                sock.close()
            if self._said != str(error.strerror):
                self._said = str(error.strerror)
                log.warning(
                    "%s: no VMM at %s: %s; trying again until there is",
                    self._name,
                    self._path,
                    error.strerror,
                )
            self._retry()
        else:
            self._said = ""
            self._meet(sock)

    def _retry(self) -> None:
        self._timer = self.loop.timer(self.delay_s, self._connect)
        self.delay_s = min(2 * self.delay_s, max(BACK_OFF_MAX_S, self.options.reconnect))


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
