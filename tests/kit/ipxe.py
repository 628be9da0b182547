"""iPXE in QEMU: boot firmware, whose drivers are nobody's but its own."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kit.debian import IPXE, QEMU_11, fetch
from kit.guest import QEMU_MODULES, GuestLostError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kit.guest import Nic

TIMEOUT_S = 60.0
"""Its drivers are bound and its script runs within two seconds, on a quiet machine."""


def run_ipxe(nics: Sequence[Nic], script: Sequence[str]) -> str:
    """Run commands of iPXE, and return all that it has printed, in plain text.

    They end early where one fails.

    Raises:
        Missing: iPXE or QEMU can't be had here.
        GuestLostError: it did not come to their end.
    """
    firmware, tree = fetch(IPXE), fetch(QEMU_11)
    with tempfile.TemporaryDirectory(prefix="vnic-ipxe-") as folder:
        program, console = Path(folder, "script.ipxe"), Path(folder, "console")
        # A script that fails ends in a shell, and nobody is there to type.
        lines = ["#!ipxe", *(f"{command} || poweroff" for command in script)]
        lines += ["sleep 1", "poweroff"]  # the last that it said is still on its way
        program.write_text("\n".join(lines) + "\n")
        command = tree.command("qemu-system-x86_64", "-L", str(tree.root / "usr/share/qemu"))
        command += ["-L", str(tree.root / "usr/share/seabios")]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"]
        # Without graphics, the BIOS puts the screen on the serial line.
        command += ["-M", "q35,memory-backend=mem,graphics=off", "-m", "128"]
        command += ["-object", "memory-backend-memfd,id=mem,size=128M,share=on"]
        command += ["-kernel", str(firmware.root / "usr/lib/ipxe/ipxe.lkrn")]
        command += ["-initrd", str(program)]
        command += ["-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"]
        for nic in nics:
            command += nic.arguments(QEMU_11)
        try:
            done = subprocess.run(
                command,
                pass_fds=[fd for nic in nics for fd in nic.fds],
                env={**os.environ, "QEMU_MODULE_DIR": str(tree.root / QEMU_MODULES)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            why = f"did not end within {TIMEOUT_S:g} s"
            raise GuestLostError(f"iPXE: {why}:\n{_plain(console)}") from None
        if done.returncode != 0:
            raise GuestLostError(f"iPXE: QEMU ended with {done.returncode}: {done.stderr}")
        return _plain(console)


def _plain(console: Path) -> str:
    """Return what was printed, without colours and cursor movements."""
    text = console.read_text(errors="replace") if console.exists() else ""
    return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|c)", "", text)
