"""What guests are asked to do on their network, and how long it is waited for."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from kit.guest import GuestCommandError

if TYPE_CHECKING:
    from kit.guest import Guest

ACCEPT_TIMEOUT_S = 20.0
RECEIVE_TIMEOUT_S = 60.0


def until(guest: Guest, command: str, timeout_s: float = 20.0) -> None:
    """Run a command in a guest, again and again, until it succeeds."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            guest.run(command)
            return
        except GuestCommandError:
            assert time.monotonic() < deadline_s, f"`{command}` fails still"


def there_and_back(guest: Guest, address: str, listener: socket.socket, n_bytes: int) -> None:
    """Send random bytes to a guest, which sends them back at the same time; compare them.

    Args:
        guest: who calls, by TCP.
        address: where it finds the listener.
        listener: listens on some port of that address, for this one call.
        n_bytes: how many bytes are sent each way.
    """
    sent = os.urandom(n_bytes)
    listener.settimeout(ACCEPT_TIMEOUT_S)
    echo = guest.start(f"nc {address} {listener.getsockname()[1]} -e cat")
    connection, _ = listener.accept()
    with connection, ThreadPoolExecutor(1) as thread:
        connection.settimeout(RECEIVE_TIMEOUT_S)
        sending = thread.submit(connection.sendall, sent)
        received = hashlib.sha256()
        while n_bytes and (data := connection.recv(1 << 20)):
            received.update(data)
            n_bytes -= len(data)
        sending.result()
    echo.wait()
    assert received.hexdigest() == hashlib.sha256(sent).hexdigest()
