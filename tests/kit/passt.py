"""Debian's passt, as an unprivileged user, in a namespace from which no way leads on.

passt is a TCP/IP stack in user space: it takes a guest's frames from a UNIX socket, and makes
sockets of its own of them.  So a guest on it reaches what a process in that namespace reaches.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from kit.debian import PASST, Tree, fetch
from kit.missing import Missing

if TYPE_CHECKING:
    from types import TracebackType

    from kit.netns import Netns

NOBODY: Final = 65534
"""A user who may do nothing; and the group of that name."""

GUEST: Final = "10.77.0.2"
"""The guest's address, by DHCP: that of the namespace itself."""

ROUTER: Final = "10.77.0.1"
"""Nobody has it: passt answers for it, and leads what is sent there to the namespace's loopback."""

START_TIMEOUT_S: Final = 10.0


class Passt:
    """One passt that listens; a context manager.  The namespace gets an interface for it.

    Raises:
        Missing: it cannot be had here.
    """

    def __init__(self, netns: Netns) -> None:
        tree = fetch(PASST)
        self._netns = netns
        netns.add_veth("uplink", "nowhere")
        netns.set_address("uplink", f"{GUEST}/24")
        netns.up("uplink")
        netns.up("nowhere")
        netns.run(["ip", "route", "add", "default", "via", ROUTER])
        self._folder = Path(tempfile.mkdtemp(prefix="vnic-passt-"))
        # The cache may be in a home that nobody else may enter.
        self._folder.chmod(0o755)
        self._tree = Tree(self._folder)
        shutil.copytree(tree.root / "usr", self._folder / "usr", symlinks=True)
        run = self._folder / "run"
        run.mkdir()
        shutil.chown(run, NOBODY, NOBODY)
        self.path = run / "passt.sock"
        """Where it listens."""

    def start(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            Missing: it can't run here: perhaps users may not make namespaces.
        """
        arguments = ["--foreground", "--ipv4-only", "--quiet", "--socket", str(self.path)]
        self.process = self._netns.popen(
            self._tree.command("passt", *arguments),
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self.path.exists():
            assert self.process.stderr is not None
            if self.process.poll() is not None:
                why = f"it ended: {self.process.stderr.read().strip()}"
                raise Missing("passt", why, "let users make namespaces, as Debian does")
            assert time.monotonic() < deadline_s, "passt does not listen"
            time.sleep(0.01)
        self.path.chmod(0o777)  # one who is not nobody may have no right but this

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        shutil.rmtree(self._folder)
