"""`vnic run` as a process of its own: what the guests of these tests hang on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from kit.netns import Netns

START_TIMEOUT_S = 20.0


class VnicRun:
    """One ``vnic run``, in a network namespace; it is serving once this is made."""

    def __init__(self, netns: Netns, toml: Path, *, privileged: bool = True) -> None:
        """Start it; unprivileged, it has none of root's capabilities."""
        self._netns = netns
        self._toml = toml
        self._before = [] if privileged else ["setpriv", "--bounding-set=-all"]
        self.log_path = toml.with_suffix(".log")
        self._start()

    def _start(self) -> None:
        n_nics = self._toml.read_text().count("[[nic]]")
        program = Path(sys.executable).with_name("vnic")
        with self.log_path.open("ab") as log:
            self.process = self._netns.popen(
                [*self._before, str(program), "run", str(self._toml), "--json", "-v"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        served = 0
        while served < n_nics:
            line = self.process.stdout.readline()
            assert line, f"vnic ended: {self.log()}"
            served += json.loads(line)["event"] == "serving"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def log(self) -> str:
        """Return all that it has logged."""
        return self.log_path.read_text()

    def kill(self) -> None:
        """End it as a crash would, with no chance to tidy up."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def restart(self) -> None:
        """Start it again; what the last one left is in its way, if anything is."""
        self._start()

    def stop(self) -> int:
        """End it as an operator would; return its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(10)
