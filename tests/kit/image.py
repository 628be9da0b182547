"""The guest's kernel and its root file system.

The kernel is Debian's, decompressed: QEMU starts a ``vmlinux`` through PVH in two thirds of the
time that a bzImage takes.  The root is an initramfs of busybox, iperf3, ethtool and a few modules,
whose ``/init`` ends in an agent that answers commands on the second serial port (``Guest`` is its
other end).
"""

from __future__ import annotations

import hashlib
import lzma
import re
import stat
import struct
import subprocess
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kit import debian
from kit.debian import Tree, fetch
from kit.missing import Missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

READY = "vnic-kit ready"
"""The agent says so, on a line of its own, after each boot."""

ANSWER = "vnic-kit answer"
"""Begins the line ``ANSWER number status length``, which ``length`` bytes of output follow."""

INIT = """#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
modprobe virtio_net
modprobe e1000
ip link set lo up
while true; do sh /agent; done
"""

# One request is one line: its number, a limit in seconds, a script in base64.  Output goes by way
# of a file, so that its length is known before its first byte, nothing in it can be taken for a
# marker, and what a command left running in the background writes to a file that nobody reads any
# more.  A command that ran into its limit takes with it all that it started: it has a process group
# of its own.
AGENT = f"""
exec <>/dev/ttyS1 >&0 2>/dev/console
stty raw -echo 115200
echo
echo '{READY}'
while read -r number limit script; do
    output=/tmp/output.$number
    printf %s "$script" | base64 -d >/tmp/script
    timeout -k 2 "$limit" setsid sh /tmp/script >$output 2>&1 </dev/null &
    wait $!
    status=$?
    [ $status -gt 128 ] && kill -KILL -- -$! 2>/dev/null
    length=$(stat -c %s $output)
    echo "{ANSWER} $number $status $length"
    head -c $length $output
    rm -f $output
done
"""

FORMAT = 2
"""Goes up when an image made by an older version of this file must not be used."""


@attrs.frozen
class Image:
    """A guest's kernel and root, ready for QEMU's ``-kernel`` and ``-initrd``."""

    kernel: Path
    """A decompressed ELF kernel with a PVH entry."""

    initramfs: Path
    """An uncompressed cpio; another one may be appended to it."""


def image() -> Image:
    """Return the guest's image, building it in the cache first if need be.

    Raises:
        Missing: its parts cannot be fetched.
    """
    recipes = (debian.KERNEL, debian.GUEST_PROGRAMS)
    key = repr((FORMAT, INIT, AGENT, *(recipe.folder for recipe in recipes)))
    name = f"image-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    folder = debian.cache_folder() / name
    if not folder.exists():
        kernel, programs = (fetch(recipe) for recipe in recipes)
        with debian.making(name) as partial:
            if partial is not None:
                packed = next((kernel.root / "boot").glob("vmlinuz-*")).read_bytes()
                (partial / "vmlinux").write_bytes(unpack_kernel(packed, programs))
                (partial / "initramfs.cpio").write_bytes(_initramfs(kernel, programs))
    return Image(folder / "vmlinux", folder / "initramfs.cpio")


def unpack_kernel(bz_image: bytes, tools: Tree) -> bytes:
    """Return the ELF kernel inside a bzImage; ``tools`` has zstd, which Python 3.11 has not.

    Spec: Linux x86 boot protocol 2.08, "The Real-Mode Kernel Header".
    """
    if bz_image[0x202:0x206] != b"HdrS":
        raise Missing("guest kernel", "not a bzImage", "remove the cache and fetch again")
    setup_sectors = bz_image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bz_image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    kernel = decompress(bz_image[start : start + length], tools)
    if not kernel.startswith(b"\x7fELF"):
        raise Missing("guest kernel", "its payload is no ELF file", "remove the cache")
    return kernel


def decompress(packed: bytes, tools: Tree) -> bytes:
    """Decompress gzip, xz or zstd data, told apart by their magic; other data is returned as it
    is."""
    if packed.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(packed)
    if packed.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMADecompressor().decompress(packed)
    if packed.startswith(b"\x28\xb5\x2f\xfd"):
        # The kernel's build appends the unpacked size to the frame; zstd says it cannot read that,
        # after the frame.
        command = tools.command("zstd", "--decompress", "--stdout", "--quiet")
        return subprocess.run(command, input=packed, capture_output=True, check=False).stdout
    return packed


class Cpio:
    """Writes a cpio archive in the "newc" format, the one that Linux takes as an initramfs."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._n_entries = 0
        self._folders: set[str] = set()

    def add_file(self, path: str, content: bytes, permissions: int = 0o644) -> None:
        """Add a regular file, and the folders above it; ``path`` has no leading slash."""
        self._add_parents(path)
        self._add(path, stat.S_IFREG | permissions, content)

    def add_link(self, path: str, target: str) -> None:
        """Add a symbolic link, and the folders above it."""
        self._add_parents(path)
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def add_folder(self, path: str) -> None:
        """Add a folder, and the folders above it."""
        if path not in self._folders:
            self._add_parents(path)
            self._folders.add(path)
            self._add(path, stat.S_IFDIR | 0o755)

    def add_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device, and the folders above it."""
        self._add_parents(path)
        self._add(path, stat.S_IFCHR | 0o600, major=major, minor=minor)

    def finish(self) -> bytes:
        """Return the archive, a multiple of four bytes long, so that another may follow it."""
        self._add("TRAILER!!!", 0)
        return bytes(self._data)

    def _add_parents(self, path: str) -> None:
        folder = path.rpartition("/")[0]
        if folder:
            self.add_folder(folder)

    def _add(
        self, path: str, mode: int, content: bytes = b"", *, major: int = 0, minor: int = 0
    ) -> None:
        self._n_entries += 1
        name = path.encode() + b"\0"
        n_links = 2 if stat.S_ISDIR(mode) else 1
        # inode, mode, uid, gid, links, time, size, device of the file, device it stands for, length
        # of name, checksum
        fields = (self._n_entries, mode, 0, 0, n_links, 0, len(content), 0, 0, major, minor)
        header = b"070701" + b"".join(b"%08X" % field for field in (*fields, len(name), 0))
        for part in (header + name, content):
            self._data += part
            self._data += bytes(-len(self._data) % 4)


def overlay(files: Mapping[str, bytes]) -> bytes:
    """Return a cpio of executable files, to be appended to an image's own."""
    cpio = Cpio()
    for path, content in files.items():
        cpio.add_file(path.lstrip("/"), content, 0o755)
    return cpio.finish()


def _initramfs(kernel: Tree, programs: Tree) -> bytes:
    cpio = Cpio()
    for folder in ("dev", "proc", "sys", "tmp", "root", "etc", "bin"):
        cpio.add_folder(folder)
    cpio.add_link("sbin", "bin")  # the kernel looks for /sbin/modprobe
    cpio.add_device("dev/console", 5, 1)
    cpio.add_file("init", INIT.encode(), 0o755)
    cpio.add_file("agent", AGENT.encode())
    busybox = programs.program("busybox")
    cpio.add_file("bin/busybox", busybox.read_bytes(), 0o755)
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
        cpio.add_link(f"bin/{applet}", "busybox")
    names = ("ethtool", "iperf3")
    for name in names:
        cpio.add_file(f"bin/{name}", programs.program(name).read_bytes(), 0o755)
    cpio.add_file("lib64/ld-linux-x86-64.so.2", programs.loader.read_bytes(), 0o755)
    libraries = _libraries(programs, names)
    # What the C library itself loads to cancel a thread, which is how iperf3 ends.
    libraries += (programs.root / "usr/lib/x86_64-linux-gnu").glob("libgcc_s.so.*")
    for library in libraries:
        cpio.add_file(f"lib/x86_64-linux-gnu/{library.name}", library.read_bytes(), 0o755)
    _add_modules(cpio, kernel, programs)
    return cpio.finish()


def _libraries(tree: Tree, names: Iterable[str]) -> list[Path]:
    """Return the shared libraries that some programs need, as the tree's own loader finds them."""
    found: set[Path] = set()
    for name in names:
        command = [str(tree.loader), "--library-path", tree.library_path, "--list"]
        command.append(str(tree.program(name)))
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found.update(Path(path) for path in re.findall(r"\blib\S+ => (\S+) \(", listed))
    return sorted(found)


def _add_modules(cpio: Cpio, kernel: Tree, tools: Tree) -> None:
    """Add the tree's kernel modules, unpacked, with the ``modules.dep`` by which modprobe finds
    them."""
    base = next((kernel.root / "usr/lib/modules").iterdir())
    needs: dict[str, list[str]] = {}
    for path in sorted(base.rglob("*.ko*")):
        name = path.name.partition(".")[0]
        module = decompress(path.read_bytes(), tools)
        cpio.add_file(f"lib/modules/{base.name}/{name}.ko", module)
        line = re.search(rb"\0depends=([^\0]*)\0", module)
        needs[name] = (
            [each.replace("-", "_") for each in line[1].decode().split(",") if each] if line else []
        )
    absent = {each for names in needs.values() for each in names} - set(needs)
    if absent:
        why = f"modules depend on others that the recipe does not name: {', '.join(sorted(absent))}"
        raise Missing("guest kernel", why, "name them in kit.debian.KERNEL")
    lines = [
        f"{name}.ko:{''.join(f' {each}.ko' for each in _closure(name, needs))}\n" for name in needs
    ]
    cpio.add_file(f"lib/modules/{base.name}/modules.dep", "".join(lines).encode())


def _closure(name: str, needs: Mapping[str, list[str]]) -> list[str]:
    """Return all that a module needs, in the order of ``modules.dep``: the last is loaded first."""
    found: list[str] = []
    for each in needs[name]:
        for one in (each, *_closure(each, needs)):
            if one in found:
                found.remove(one)
            found.append(one)
    return found
