"""A NIC whose carrier a test holds: served by a loop in a thread of this process."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from vnic.config import parse_nic, structure
from vnic.link import Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic_vfio_user import Plugin as VfioUser

from kit.wire import Wire

if TYPE_CHECKING:
    from pathlib import Path


class Cable:
    """A NIC on a wire, served over vfio-user.  Its host network says nothing of its own."""

    def __init__(self, path: Path, frontend: Any, nic: str) -> None:
        """Serve.

        Args:
            path: the UNIX socket.
            frontend: the plugin's class.
            nic: the NIC as a user writes it; its backend's name is for show.
        """
        config = parse_nic(nic)
        (options,) = structure(config.options, config.frontend, frontend.Options)
        self.wire = Wire()
        self._loop = Loop()
        self._server = VfioUser(VfioUser.Options(path=str(path)), self._loop)
        link = Link("cable", self._loop)
        self._nic = Nic(config, frontend(), options, link)
        link.open([(self.wire, "cable", None)])
        self._nic.attach(self._server)
        self._server.serve(self._nic)
        self._thread = threading.Thread(target=self._loop.run)
        self._thread.start()

    def plug(self, inserted: bool) -> None:
        """Plug it in or out."""
        with self._loop.lock:
            if inserted:
                self.wire.link.up()
            else:
                self.wire.link.down("pulled out")

    def close(self) -> None:
        """End the session and the thread."""
        self._loop.stop()
        self._thread.join()
        self._server.close()
        self._nic.close()
        self._loop.close()
