"""DPDK's testpmd, driven at its prompt: a second driver, and a yardstick, that nobody here
wrote."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

import attrs

from kit.debian import DPDK, fetch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

PROMPT = b"testpmd> "

START_TIMEOUT_S = 60.0
"""A start takes one second; a vhost-user peer that is slow to answer adds to it."""

COMMAND_TIMEOUT_S = 30.0
"""For one command at the prompt."""

QUIT_TIMEOUT_S = 10.0
"""Then it is killed: it waits for ever on a peer that does not answer GET_VRING_BASE."""

DRIVERS = ("mempool_ring", "net_null", "net_ring", "net_vhost", "net_virtio")
"""Drivers that are loaded; loading them all takes seconds."""


class TestpmdError(Exception):
    """Testpmd ended, refused a command or did not answer."""

    __test__ = False  # no class of tests, whatever its name


@attrs.frozen(kw_only=True)
class PortStats:
    """One port's counters, since the start or the last ``clear port stats``."""

    port: int
    """Number of the port: the vdevs in their order."""

    rx_packets: int
    rx_missed: int
    rx_bytes: int
    rx_errors: int
    rx_nombuf: int
    tx_packets: int
    tx_errors: int
    tx_bytes: int


class Testpmd:
    """One testpmd, from its start to its end; a context manager.

    The constructor waits for the prompt, and so until the ports are configured: a virtio_user port
    in client mode needs its server to be there.
    """

    __test__ = False  # no class of tests, whatever its name

    def __init__(
        self,
        vdevs: Sequence[str],
        *,
        options: Sequence[str] = (),
        eal_options: Sequence[str] = (),
        lcores: str = "0@0,1@0",
        memory_mib: int = 256,
        n_mbufs: int = 8192,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        """Start it.

        Args:
            vdevs: the ports, as ``virtio_user0,path=/run/a.sock,queues=1,queue_size=1024``.
            options: testpmd's own options, after ``--``: ``--forward-mode=mac``.
            eal_options: further options of DPDK, before ``--``.
            lcores: DPDK's cores and the CPUs that they run on.  The first one has the prompt, the
                others forward; as given here they share CPU 0.
            memory_mib: DPDK's memory; no huge pages are needed.
            n_mbufs: buffers.
            start_timeout_s: how long it may take to the prompt.

        Raises:
            Missing: DPDK cannot be had here.
            TestpmdError: it did not start.
        """
        tree = fetch(DPDK)
        libraries = tree.root / "usr/lib/x86_64-linux-gnu"
        (plugins,) = libraries.glob("dpdk/pmds-*")
        # By bare name, and found through the library path: DPDK refuses paths through /tmp.
        drivers = [
            plugin.name for each in DRIVERS for plugin in plugins.glob(f"librte_{each}.so.??")
        ]
        self._folder = Path(tempfile.mkdtemp(prefix="vnic-testpmd-"))
        command = [str(tree.loader), "--library-path", f"{tree.library_path}:{plugins}"]
        command += [str(tree.program("dpdk-testpmd")), "--no-huge", "--no-pci", "--no-telemetry"]
        command += ["-m", str(memory_mib), "--lcores", lcores, "--file-prefix", "testpmd"]
        command += [word for driver in drivers for word in ("-d", driver)]
        command += [word for vdev in vdevs for word in ("--vdev", vdev)]
        command += [*eal_options, "--", "--interactive", f"--total-num-mbufs={n_mbufs}", *options]
        # Its output is a terminal, or it would hold back what it prints while its prompt runs
        # ahead.
        self._output, terminal = os.openpty()
        try:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "RUNTIME_DIRECTORY": str(self._folder)},
                stdin=subprocess.PIPE,
                stdout=terminal,
                stderr=terminal,
                bufsize=0,
                start_new_session=True,
            )
        finally:
            os.close(terminal)
        # Read all the time: a testpmd that cannot print stops serving its ports.
        self._unread = bytearray()
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, name="testpmd", daemon=True)
        self._reader.start()
        try:
            self.greeting = self._read_to_prompt(start_timeout_s, "start")
            """What it said until the first prompt."""
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id, for whoever measures it."""
        return self._process.pid

    def command(self, line: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Type one line at the prompt, and return what is printed until the next prompt.

        Raises:
            TestpmdError: it does not know the command, has ended, or does not answer in time.
        """
        assert self._process.stdin is not None
        with self._news:
            self._unread.clear()  # what it has logged of its own accord
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except OSError as error:
            raise TestpmdError(f"testpmd has ended, before `{line}`: {error}") from error
        answer = self._read_to_prompt(timeout_s, line)
        if re.search(r"^(Command not found|Bad arguments|Ambiguous command)", answer, re.MULTILINE):
            raise TestpmdError(f"testpmd does not take `{line}`: {answer.strip()}")
        return answer

    def stats(self) -> list[PortStats]:
        """Return the counters of all ports."""
        return parse_stats(self.command("show port stats all"))

    def close(self) -> str:
        """Quit, or kill it if it does not within ten seconds; return its last words.

        It leaves nothing behind.  Nothing happens the second time.
        """
        assert self._process.stdin is not None
        if self._process.stdin.closed:
            return ""
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"quit\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(QUIT_TIMEOUT_S)
        self._process.kill()  # nothing happens if it has ended
        self._process.wait()
        self._process.stdin.close()
        self._reader.join()
        os.close(self._output)
        shutil.rmtree(self._folder, ignore_errors=True)
        return _text(self._unread)

    def _read_to_prompt(self, timeout_s: float, during: str) -> str:
        """Return the output up to the next prompt, without the echo of the line and the prompt."""
        with self._news:
            self._news.wait_for(lambda: PROMPT in self._unread or self._ended, timeout_s)
            output, prompt, _ = self._unread.partition(PROMPT)
            if not prompt:
                why = "ended" if self._ended else f"gave no prompt in {timeout_s:g} s"
                raise TestpmdError(f"testpmd {why} after `{during}`:\n{_text(output)}")
            del self._unread[: len(output) + len(prompt)]
        return _text(output).removeprefix(during).lstrip("\n")

    def _read(self) -> None:
        """Collect the output until it ends; runs in a thread of its own."""
        while not self._ended:
            try:
                data = os.read(self._output, 65536)
            except OSError:
                data = b""  # what a terminal answers when its last user has gone
            with self._news:
                self._unread += data
                self._ended = not data
                self._news.notify()


def _text(output: bytes | bytearray) -> str:
    return output.decode(errors="replace").replace("\r", "")


def parse_stats(text: str) -> list[PortStats]:
    """Read the output of ``show port stats all``."""
    ports = []
    for block in re.split(r"#+ NIC statistics for port ", text)[1:]:
        number = int(block.split(maxsplit=1)[0])
        counters = re.findall(r"([RT]X-(?:packets|missed|bytes|errors|nombuf)):\s*(\d+)", block)
        fields = {name.lower().replace("-", "_"): int(value) for name, value in counters}
        ports.append(PortStats(port=number, **fields))
    return ports
