"""A small Linux guest in QEMU, driven by commands.

No KVM and no disk: the image of :mod:`kit.image` boots in two to three seconds under software
emulation, and :meth:`Guest.run` runs shell commands in it.  What the guest's NICs hang on is said
by :class:`Nic` objects or by plain QEMU arguments.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

from kit.debian import QEMU_11, Recipe, fetch
from kit.image import ANSWER, READY, image, overlay

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

BOOT_TIMEOUT_S = 60.0
"""A boot takes 2 to 3 s on a quiet machine."""

COMMAND_TIMEOUT_S = 30.0
"""For commands that are expected to end at once; the guest is slow, and the machine may be busy."""

KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t 8250.nr_uarts=2 noreplace-smp tsc=reliable"
    " no_timer_check mitigations=off nokaslr random.trust_cpu=on cryptomgr.notests i8042.noaux"
    " i8042.nokbd audit=0 rcupdate.rcu_expedited=1 rodata=off init_on_alloc=0 lsm="
)
"""What makes an emulated boot short; every piece was measured."""

QEMU_MODULES = "usr/lib/x86_64-linux-gnu/qemu"
"""Where a tree has what QEMU loads when it needs it: in 7.2 even the emulator itself."""


class GuestCommandError(Exception):
    """A command in a guest failed."""

    def __init__(self, guest: str, command: str, status: int, output: str) -> None:
        super().__init__(f"{guest}: `{command}` ended with status {status}:\n{output}")
        self.command = command
        """The command, as it was given."""
        self.status = status
        """Its exit status; 143 or 137 when it ran into its time limit."""
        self.output = output
        """All that it wrote."""


class GuestLostError(Exception):
    """A guest does not answer: it has ended, restarted by itself, or hangs."""


class Nic(Protocol):
    """Something that gives a guest a NIC."""

    def arguments(self, qemu: Recipe) -> list[str]:
        """Return QEMU's arguments for it."""
        ...

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that QEMU inherits."""
        ...


@attrs.frozen(kw_only=True)
class VhostUserNic:
    """A virtio-net NIC whose rings another process serves."""

    path: Path
    """The UNIX socket."""

    mac: str
    """The NIC's address; over vhost-user QEMU owns it."""

    id: str = "net0"
    """QEMU's name for the netdev, as ``set_link`` takes it."""

    server: bool = False
    """QEMU listens and waits for the other process, rather than connect to it."""

    reconnect_s: int = 1
    """As a client: how long QEMU waits before it tries again, at start and after a loss; 0 means it
    never does."""

    queue_pairs: int = 1
    """Pairs of queues."""

    options: Mapping[str, str | int] = attrs.field(factory=dict)
    """Options of ``virtio-net-pci``: ``{"host_mtu": 9000, "csum": "off", "rx_queue_size":
    1024}``."""

    @property
    def fds(self) -> tuple[int, ...]:
        """None: QEMU opens the socket itself."""
        return ()

    def arguments(self, qemu: Recipe) -> list[str]:
        """Return the chardev, the netdev and the device."""
        chardev = f"socket,id={self.id}-socket,path={self.path}"
        if self.server:
            chardev += ",server=on,wait=off"
        elif self.reconnect_s:
            # Seconds until QEMU 9.2, milliseconds since.
            old = qemu.name == "qemu-7"
            chardev += (
                f",reconnect={self.reconnect_s}"
                if old
                else f",reconnect-ms={self.reconnect_s * 1000}"
            )
        netdev = f"vhost-user,id={self.id},chardev={self.id}-socket,queues={self.queue_pairs}"
        options = self.options
        if qemu.name == "qemu-7":
            # Debian's 7.2 has the fault of CVE-2024-4693: without KVM it crashes when a driver
            # chooses MSI-X vectors of a vhost device.  Its interrupts are a line here.
            options = {"vectors": 0, **options}
        device = _virtio_net(self.id, self.mac, self.queue_pairs, options)
        return ["-chardev", chardev, "-netdev", netdev, "-device", device]


@attrs.frozen(kw_only=True)
class VfioUserNic:
    """A NIC of any kind, all of which another process serves; QEMU 11 and later."""

    path: Path
    """The UNIX socket; whoever serves the NIC listens there already."""

    id: str = "nic0"
    """QEMU's name for the device."""

    @property
    def fds(self) -> tuple[int, ...]:
        """None: QEMU opens the socket itself."""
        return ()

    def arguments(self, qemu: Recipe) -> list[str]:
        """Return the device."""
        socket = {"type": "unix", "path": str(self.path)}
        return ["-device", json.dumps({"driver": "vfio-user-pci", "id": self.id, "socket": socket})]


@attrs.frozen(kw_only=True)
class TapNic:
    """A NIC of QEMU's own model on a tap, by its descriptor: the tap may be in any namespace."""

    fd: int
    """The tap, opened with a virtio-net header (``Netns.open_tap``).  Stays the caller's; close it
    after the start."""

    mac: str
    """The NIC's address."""

    id: str = "net0"
    """QEMU's name for the netdev."""

    model: str = "virtio-net-pci"
    """The NIC's model: ``virtio-net-pci``, ``e1000``."""

    options: Mapping[str, str | int] = attrs.field(factory=dict)
    """Options of the device."""

    @property
    def fds(self) -> tuple[int, ...]:
        """The tap."""
        return (self.fd,)

    def arguments(self, qemu: Recipe) -> list[str]:
        """Return the netdev and the device."""
        netdev = f"tap,id={self.id},fd={self.fd},vhost=off"
        device = _virtio_net(self.id, self.mac, 1, self.options, self.model)
        return ["-netdev", netdev, "-device", device]


def _virtio_net(
    netdev: str,
    mac: str,
    queue_pairs: int,
    options: Mapping[str, str | int],
    model: str = "virtio-net-pci",
) -> str:
    # Without a ROM file there is nothing to boot from the network with, and nothing that the tree
    # would lack.
    device = f"{model},netdev={netdev},mac={mac},romfile="
    if queue_pairs > 1:
        device += f",mq=on,vectors={2 * queue_pairs + 2}"
    return device + "".join(f",{name}={value}" for name, value in options.items())


class Guest:
    """One guest, from its start to its end.

    The constructor starts QEMU and does not wait, so that several guests boot at once; as a context
    manager it waits until the guest answers.  Not for use from several threads at once.
    """

    def __init__(
        self,
        nics: Sequence[Nic] = (),
        *,
        name: str = "guest",
        qemu: Recipe = QEMU_11,
        memory_mib: int = 512,
        cpus: int = 1,
        arguments: Sequence[str] = (),
        kernel_arguments: str = "",
        files: Mapping[str, bytes] | None = None,
        fds: Sequence[int] = (),
    ) -> None:
        """Start QEMU.

        Args:
            nics: the guest's NICs, in the order in which the guest numbers them.
            name: for error messages.
            qemu: which QEMU.
            memory_mib: guest memory, shared with whoever QEMU gives its descriptor to.
            cpus: virtual CPUs.
            arguments: further arguments for QEMU.
            kernel_arguments: further words of the kernel's command line.
            files: executable files to add to the guest's root, by path.
            fds: further descriptors that QEMU inherits.

        Raises:
            Missing: QEMU or the guest's parts cannot be had here.
        """
        self.name = name
        tree, parts = fetch(qemu), image()
        self._folder = Path(tempfile.mkdtemp(prefix="vnic-guest-"))
        self._console = self._folder / "console"
        self._qemu_log = self._folder / "qemu"
        initramfs = parts.initramfs
        if files:
            initramfs = self._folder / "initramfs.cpio"
            initramfs.write_bytes(parts.initramfs.read_bytes() + overlay(files))
        # Connected pairs rather than paths: nothing to name, to wait for or to remove.
        self._agent, agent = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        command = tree.command("qemu-system-x86_64", "-L", str(tree.root / "usr/share/qemu"))
        command += ["-L", str(tree.root / "usr/share/seabios")]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]
        command += ["-cpu", "qemu64", "-smp", str(cpus), "-m", str(memory_mib)]
        command += ["-M", "q35,memory-backend=mem"]
        command += ["-object", f"memory-backend-memfd,id=mem,size={memory_mib}M,share=on"]
        command += ["-kernel", str(parts.kernel), "-initrd", str(initramfs)]
        command += ["-append", f"{KERNEL_ARGUMENTS} {kernel_arguments}"]
        command += [
            "-chardev",
            f"file,id=console,path={self._console}",
            "-serial",
            "chardev:console",
        ]
        command += ["-chardev", f"socket,id=agent,fd={agent.fileno()}", "-serial", "chardev:agent"]
        command += ["-chardev", f"socket,id=monitor,fd={monitor.fileno()}"]
        command += ["-mon", "chardev=monitor,mode=control"]
        inherited = [agent.fileno(), monitor.fileno(), *fds]
        for nic in nics:
            command += nic.arguments(qemu)
            inherited += nic.fds
        with self._qemu_log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=inherited,
                env={**os.environ, "QEMU_MODULE_DIR": str(tree.root / QEMU_MODULES)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A terminal's Ctrl-C is for the tests, which end their guests in order.
                start_new_session=True,
            )
        agent.close()
        monitor.close()
        self._received = b""
        self._ready = False
        self._n_commands = 0
        self._qmp_stream: Any = None
        _open_guests.add(self)

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise
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
        """QEMU's process id, for whoever measures it."""
        return self._process.pid

    @property
    def console(self) -> str:
        """What the guest's kernel has printed so far."""
        try:
            return self._console.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_ready(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Wait until the guest has booted and its agent answers; at once if it has before.

        Raises:
            GuestLostError: it did not boot.
        """
        deadline_s = time.monotonic() + timeout_s
        while not self._ready:
            self._note_line(self._read_line(deadline_s, "boot"))

    def run(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run a shell command or script in the guest, and return all that it wrote.

        The guest ends it after ``timeout_s``.  A process that it leaves behind with ``&`` goes on.

        Raises:
            GuestCommandError: it ended with another status than 0.
            GuestLostError: the guest did not answer.
        """
        self.wait_ready()
        self._n_commands += 1
        number = str(self._n_commands)
        script = base64.b64encode(command.encode()).decode()
        # Time enough for the guest to end the command and to hand over what it wrote.
        deadline_s = time.monotonic() + timeout_s + 15.0
        self._send(f"{number} {max(1, round(timeout_s))} {script}\n".encode(), deadline_s, command)
        while True:
            line = self._read_line(deadline_s, command)
            self._note_line(line)
            if line.startswith(READY):
                raise GuestLostError(f"{self.name}: restarted during `{command}`{self._tail()}")
            if not line.startswith(ANSWER):
                continue
            answered, status, n_bytes = line.removeprefix(ANSWER).split()
            output = self._read(int(n_bytes), deadline_s, command).decode(errors="replace")
            if answered == number:
                break
        if status != "0":
            raise GuestCommandError(self.name, command, int(status), output)
        return output

    def start(self, command: str) -> GuestJob:
        """Start a command in the background of the guest, and return a handle on it at once."""
        folder = f"/tmp/job.{self._n_commands}"
        script = base64.b64encode(command.encode()).decode()
        self.run(
            f"mkdir {folder} && cd {folder} && echo {script} | base64 -d >script\n"
            "(setsid sh -c 'echo $$ >pid; sh script >output 2>&1 </dev/null; echo $? >status.new;"
            " mv status.new status' >/dev/null 2>&1 &)\n"
            "until [ -s pid ]; do usleep 10000; done"
        )
        return GuestJob(self, command, folder)

    def reboot(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Have the guest restart itself, as its own ``reboot`` does, and wait until it answers
        again."""
        with contextlib.suppress(GuestCommandError):
            self.run("(sleep 0.2; sync; reboot -f) >/dev/null 2>&1 &")
        self._await_restart(timeout_s)

    def reset(self, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        """Press the reset button: the guest's drivers get no chance to stop.  Wait until it answers
        again."""
        self.qmp("system_reset")
        self._await_restart(timeout_s)

    def set_link(self, nic: str, up: bool) -> None:
        """Plug a NIC's cable in or out; ``nic`` is the id of its netdev or device."""
        self.qmp("set_link", name=nic, up=up)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a command of QEMU's machine protocol and return its result; events are passed over.

        Raises:
            GuestLostError: QEMU did not answer, or refused.
        """
        if self._qmp_stream is None:
            self._monitor.settimeout(COMMAND_TIMEOUT_S)
            self._qmp_stream = self._monitor.makefile("rw", encoding="utf-8")
            self._qmp_stream.readline()  # greeting
            self.qmp("qmp_capabilities")
        try:
            self._qmp_stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self._qmp_stream.flush()
            while line := self._qmp_stream.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise GuestLostError(
                        f"{self.name}: QEMU refuses {command}: {answer['error']['desc']}"
                    )
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise GuestLostError(f"{self.name}: QEMU does not answer {command}: {error}") from error
        raise GuestLostError(f"{self.name}: QEMU ended during {command}{self._tail()}")

    def close(self) -> None:
        """End QEMU and remove all that it left; nothing happens the second time."""
        _open_guests.discard(self)
        self._process.terminate()  # QEMU exits at once on SIGTERM, unless it hangs
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._qmp_stream is not None:
            with contextlib.suppress(OSError):
                self._qmp_stream.close()
        self._agent.close()
        self._monitor.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await_restart(self, timeout_s: float) -> None:
        self._ready = False
        self.wait_ready(timeout_s)

    def _note_line(self, line: str) -> None:
        if line.startswith(READY):
            self._ready = True

    def _send(self, data: bytes, deadline_s: float, command: str) -> None:
        try:
            self._agent.settimeout(max(0.01, deadline_s - time.monotonic()))
            self._agent.sendall(data)
        except OSError as error:
            why = f"takes no command ({error})"
            raise GuestLostError(f"{self.name}: {why}: `{command}`{self._tail()}") from error

    def _read_line(self, deadline_s: float, during: str) -> str:
        while b"\n" not in self._received:
            self._receive(deadline_s, during)
        line, _, self._received = self._received.partition(b"\n")
        return line.decode(errors="replace").strip("\r\0")

    def _read(self, n_bytes: int, deadline_s: float, during: str) -> bytes:
        while len(self._received) < n_bytes:
            self._receive(deadline_s, during)
        data, self._received = self._received[:n_bytes], self._received[n_bytes:]
        return data

    def _receive(self, deadline_s: float, during: str) -> None:
        remaining_s = deadline_s - time.monotonic()
        if remaining_s <= 0:
            raise GuestLostError(f"{self.name}: no answer in time to `{during}`{self._tail()}")
        self._agent.settimeout(remaining_s)
        try:
            data = self._agent.recv(65536)
        except TimeoutError:
            return
        except OSError:
            data = b""
        if not data:
            status = self._process.wait(5)
            raise GuestLostError(
                f"{self.name}: QEMU ended with status {status} during `{during}`{self._tail()}"
            )
        self._received += data

    def _tail(self) -> str:
        """Return the last that QEMU and the guest's kernel said, for an error message."""
        log = self._qemu_log.read_text(errors="replace") if self._qemu_log.exists() else ""
        said = (log[-1000:].strip(), self.console[-2000:].strip())
        return "".join(
            f"\n{who}: {text}" for who, text in zip(("QEMU", "console"), said, strict=True) if text
        )


@attrs.frozen
class GuestJob:
    """A command that runs in the background of a guest; a guest's restart ends it."""

    guest: Guest
    command: str
    folder: str

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self.guest.run(f"cat {self.folder}/output")

    def wait(self, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Wait for its end, and return all that it wrote.

        Raises:
            GuestCommandError: it ended with another status than 0, or not in time.
        """
        wait = f"until [ -e {self.folder}/status ]; do usleep 50000; done; cat {self.folder}/status"
        try:
            status = int(self.guest.run(wait, timeout_s))
        except GuestCommandError as error:
            raise GuestCommandError(
                self.guest.name, self.command, error.status, f"{self.output}(still running)"
            ) from None
        if status != 0:
            raise GuestCommandError(self.guest.name, self.command, status, self.output)
        return self.output

    def stop(self) -> str:
        """End it and all that it started, and return all that it wrote; it may have ended
        before."""
        self.guest.run(f"kill -- -$(cat {self.folder}/pid) 2>/dev/null; true")
        return self.output


_open_guests: set[Guest] = set()


@atexit.register
def _close_guests() -> None:
    """End what a test forgot, or was interrupted with."""
    for guest in list(_open_guests):
        guest.close()
