"""Programs from Debian's archive, used without being installed.

A :class:`Recipe` names packages; :func:`fetch` downloads them with their dependencies, through an
apt state of its own, and unpacks them into a tree in the cache.  The system's package database is
neither read nor written, and no privilege is needed.  A program of a tree runs on the tree's own
loader and libraries, so QEMU of one Debian release runs on another.

Which mirror to use is the system's business: it is taken from the machine's own apt sources.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from kit.missing import Missing

if TYPE_CHECKING:
    from collections.abc import Iterator

LISTS_ARE_FRESH_FOR_S = 3600.0
"""Package lists younger than this are not asked for again; the archive changes four times a day."""

FETCH_TIMEOUT_S = 600.0
"""Bound on one run of apt-get, so that a mirror that hangs fails a test rather than the whole
run."""


@attrs.frozen(kw_only=True)
class Recipe:
    """What a tree is made of."""

    name: str
    """Name of the tree's folder in the cache."""

    suites: tuple[str, ...]
    """Debian suites to choose from; the last is preferred."""

    packages: tuple[str, ...]
    """Packages wanted; those that they depend on come too."""

    pretended: tuple[str, ...] = ()
    """Packages taken as installed already, so that what only an installed system needs stays
    away."""

    only: tuple[str, ...] = ()
    """Patterns of the paths to unpack, as ``usr/bin/*``; empty means all."""

    @property
    def folder(self) -> str:
        """Folder name: it changes with the recipe, so a tree made by an older recipe is never
        used."""
        return f"{self.name}-{hashlib.sha256(repr(self).encode()).hexdigest()[:8]}"


QEMU_11 = Recipe(
    name="qemu-11", suites=("trixie", "trixie-backports"), packages=("qemu-system-x86",)
)
"""QEMU 11, the first with ``vfio-user-pci`` in Debian."""

QEMU_7 = Recipe(name="qemu-7", suites=("bookworm",), packages=("qemu-system-x86",))
"""QEMU 7.2, as Debian 12 ships it."""

DPDK = Recipe(
    name="dpdk",
    suites=("trixie",),
    packages=(
        "dpdk-dev",
        "librte-mempool-ring25",
        "librte-net-null25",
        "librte-net-ring25",
        "librte-net-vhost25",
        "librte-net-virtio25",
    ),
    # Debian ships testpmd beside the headers; the headers' own dependencies are 200 packages.
    pretended=("libdpdk-dev", "python3", "sse4.2-support"),
)
"""DPDK 24.11: dpdk-testpmd and the virtual devices that it drives."""

GUEST_PROGRAMS = Recipe(
    name="guest-programs",
    suites=("trixie",),
    packages=("busybox-static", "ethtool", "iperf3", "zstd"),
)
"""What runs inside a guest; iperf3 for the other end too; zstd, which kernels are packed with."""

IPXE = Recipe(name="ipxe", suites=("trixie",), packages=("ipxe",))
"""Boot firmware with drivers of its own."""

PASST = Recipe(name="passt", suites=("trixie",), packages=("passt",))
"""passt of May 2025: a network for a guest, made of an ordinary user's sockets."""

KERNEL = Recipe(
    name="kernel",
    suites=("trixie",),
    packages=("linux-image-amd64",),
    pretended=("initramfs-tools", "kmod"),
    only=(
        "boot/vmlinuz-*",
        "boot/config-*",
        *(
            f"usr/lib/modules/*/kernel/{module}.ko*"
            for module in (
                "drivers/net/dummy",
                "drivers/net/ethernet/intel/e1000/e1000",
                "drivers/net/net_failover",
                "drivers/net/tun",
                "drivers/net/veth",
                "drivers/net/virtio_net",
                "net/802/*",
                "net/8021q/8021q",
                "net/core/failover",
                "net/core/pktgen",
                "net/llc/llc",
            )
        ),
    ),
)
"""A stock kernel, and the modules that a NIC test may want, with what they need."""


@attrs.frozen
class Tree:
    """Unpacked packages, read-only by agreement: other processes use them too."""

    root: Path
    """Where ``usr``, ``lib`` and so on are."""

    def program(self, name: str) -> Path:
        """Return the path of a program, e.g. ``iperf3``.

        Raises:
            FileNotFoundError: the recipe does not have it: the caller's fault.
        """
        for folder in ("usr/bin", "bin", "usr/sbin", "sbin"):
            path = self.root / folder / name
            if path.exists():
                return path
        raise FileNotFoundError(f"{self.root}: no program {name}")

    @property
    def loader(self) -> Path:
        """The tree's own dynamic loader."""
        for folder in ("lib64", "usr/lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
            path = self.root / folder / "ld-linux-x86-64.so.2"
            if path.is_file():  # a link into a folder that another package was to make is none
                return path
        raise FileNotFoundError(f"{self.root}: no dynamic loader")

    @property
    def library_path(self) -> str:
        """Folders of shared libraries, as the loader takes them."""
        folders = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
        return ":".join(str(self.root / folder) for folder in folders)

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the command line that runs a program on its own loader and libraries."""
        path = str(self.program(program))
        return [str(self.loader), "--library-path", self.library_path, path, *arguments]


def cache_folder() -> Path:
    """Return the folder where trees and images are kept, created if need be."""
    folder = Path(os.environ.get("VNIC_CACHE") or Path.home() / ".cache" / "vnic")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fetch(recipe: Recipe) -> Tree:
    """Return the recipe's tree, fetching it first if the cache has none.

    Costs well under a millisecond when the tree is there.  Several processes may call it at once:
    one fetches, the others wait.  An interrupted fetch leaves nothing that could be taken for a
    tree.

    Raises:
        Missing: it cannot be had here; the same error at once on each further call in this process.
    """
    root = cache_folder() / recipe.folder
    if not root.exists():
        failure = _fetch_once(recipe)
        if failure is not None:
            raise failure
    return Tree(root)


@functools.cache
def _fetch_once(recipe: Recipe) -> Missing | None:
    """Fetch; return the failure rather than raise it, so that the cache of this function remembers
    it."""
    try:
        with making(recipe.folder) as folder:
            if folder is not None:
                _fill(recipe, folder)
    except Missing as missing:
        return missing
    return None


@contextlib.contextmanager
def making(name: str) -> Iterator[Path | None]:
    """Lend an empty folder that becomes ``cache_folder() / name`` when the block ends well.

    Yields None when another process has made it meanwhile.  One maker at a time on this cache;
    waits for its turn.
    """
    cache = cache_folder()
    final = cache / name
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.exists():
            yield None
            return
        partial = cache / "partial"  # under the lock there is one; what is in it was interrupted
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _fill(recipe: Recipe, folder: Path) -> None:
    """Download the recipe's packages and unpack them into ``folder``."""
    apt = _Apt(recipe)
    archives = folder / "archives"
    (archives / "partial").mkdir(parents=True)
    apt.update()
    apt.download(archives)
    packages = sorted(archives.glob("*.deb"))
    for package in packages:
        _unpack(package, folder, recipe.only)
    (folder / "packages").write_text("".join(f"{package.name}\n" for package in packages))
    shutil.rmtree(archives)


def _unpack(package: Path, folder: Path, only: tuple[str, ...]) -> None:
    if not only:
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
        return
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = member.name.removeprefix("./")
            content = tar.extractfile(member) if member.isfile() else None
            if content and any(fnmatch.fnmatchcase(path, each) for each in only):
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(content, file)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, "dpkg-deb --fsys-tarfile")


@attrs.frozen
class Source:
    """Where this machine gets Debian from."""

    uri: str
    """The archive's address, as the system's own sources have it."""

    signed_by: str
    """Key file that apt is to check the archive against; empty means the system's trusted keys."""


def system_source(etc: Path = Path("/etc")) -> Source:
    """Return the machine's source of Debian's main archive, from either style of apt's files.

    Raises:
        Missing: this is not Debian, or its sources do not name the main archive.
    """
    remedy = "run on Debian 12 or later, with its archive among apt's sources"
    try:
        release = (etc / "os-release").read_text()
    except OSError:
        release = ""
    if not re.search(r"^ID=\"?debian\"?$", release, re.MULTILINE):
        raise Missing("Debian packages", "this system is not Debian", remedy)
    codename = re.search(r"^VERSION_CODENAME=\"?(\w+)", release, re.MULTILINE)
    suites = {"stable", "oldstable", "testing", "unstable", "sid"}
    if codename:
        suites.add(codename[1])
    apt = etc / "apt"
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not path.is_file() or path.suffix not in (".list", ".sources"):
            continue
        parse = _deb822_sources if path.suffix == ".sources" else _one_line_sources
        for types, uris, found, components, signed_by in parse(path.read_text()):
            ours = "debian-archive" in signed_by or not signed_by
            if "deb" in types and suites & set(found) and "main" in components and uris and ours:
                keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
                return Source(uris[0], str(keyring) if keyring.exists() else signed_by)
    raise Missing("Debian packages", f"no source of Debian's main archive in {apt}", remedy)


_Entry = tuple[list[str], list[str], list[str], list[str], str]
"""One source: types, URIs, suites, components, signed-by."""


def _deb822_sources(text: str) -> Iterator[_Entry]:
    for stanza in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", text, flags=re.MULTILINE)):
        fields = {
            key.lower(): value.split()
            for key, value in re.findall(r"^([\w-]+):((?:.*(?:\n[ \t].*)*))", stanza, re.MULTILINE)
        }
        if fields.get("enabled") in (["no"], ["false"]):
            continue
        yield (
            fields.get("types", []),
            fields.get("uris", []),
            fields.get("suites", []),
            fields.get("components", []),
            " ".join(fields.get("signed-by", [])),
        )


def _one_line_sources(text: str) -> Iterator[_Entry]:
    for line in text.splitlines():
        match = re.match(r"\s*(deb(?:-src)?)\s+(?:\[([^]]*)]\s*)?(\S+)\s+(\S+)([^#]*)", line)
        if match:
            options = dict(each.split("=", 1) for each in (match[2] or "").split() if "=" in each)
            yield (
                [match[1]],
                [match[3]],
                [match[4]],
                match[5].split(),
                options.get("signed-by", ""),
            )


class _Apt:
    """An apt of our own: lists and sources in the cache, nothing installed but what the recipe
    pretends."""

    def __init__(self, recipe: Recipe) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            remedy = "run on Debian 12 or later"
            raise Missing(recipe.name, "there is no apt-get or dpkg-deb", remedy)
        if os.uname().machine != "x86_64":
            why = f"the kit's programs are for x86_64, this is {os.uname().machine}"
            raise Missing(recipe.name, why, "run on x86_64")
        self._recipe = recipe
        self._source = system_source()
        self._state = cache_folder() / "apt" / "+".join(recipe.suites)

    def update(self) -> None:
        """Bring the package lists up to date, unless they are fresh."""
        (self._state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        self._write_configuration()
        stamp = self._state / "updated"
        if stamp.exists() and time.time() - stamp.stat().st_mtime < LISTS_ARE_FRESH_FOR_S:
            return
        self._run("update", "--error-on=any")
        stamp.touch()

    def download(self, archives: Path) -> None:
        """Download the recipe's packages, and all that they depend on, into ``archives``."""
        recipe = self._recipe
        options = ["--download-only", "--no-install-recommends", "--yes"]
        options += ["--option", f"Dir::Cache::archives={archives}/"]
        self._run("install", *options, "--target-release", recipe.suites[-1], *recipe.packages)

    def _write_configuration(self) -> None:
        state, source = self._state, self._source
        lines = ["Types: deb", f"URIs: {source.uri}", f"Suites: {' '.join(self._recipe.suites)}"]
        lines += ["Components: main", "Architectures: amd64", "Targets: Packages"]
        if source.signed_by:
            lines.append(f"Signed-By: {source.signed_by}")
        (state / "debian.sources").write_text("\n".join(lines) + "\n")
        (state / "status").write_text("".join(map(_pretended_status, self._recipe.pretended)))
        (state / "apt.conf").write_text(
            # Last word over the system's files: its proxy and mirrors stay, its state and hooks do
            # not.
            f"""
            Dir::State "{state}/";
            Dir::State::lists "{state}/lists/";
            Dir::State::status "{state}/status";
            Dir::State::extended_states "{state}/extended_states";
            Dir::Cache "{state}/";
            Dir::Cache::pkgcache "";
            Dir::Cache::srcpkgcache "";
            Dir::Etc::sourcelist "{state}/debian.sources";
            Dir::Etc::sourceparts "/dev/null";
            Dir::Etc::preferences "/dev/null";
            Dir::Etc::preferencesparts "/dev/null";
            APT::Sandbox::User "";
            Acquire::Languages "none";
            Acquire::Retries "2";
            Acquire::http::Timeout "20";
            Acquire::https::Timeout "20";
            #clear APT::Update::Pre-Invoke;
            #clear APT::Update::Post-Invoke;
            #clear APT::Update::Post-Invoke-Success;
            #clear DPkg::Post-Invoke;
            """
        )

    def _run(self, *arguments: str) -> None:
        command = ["apt-get", "--config-file", str(self._state / "apt.conf"), "-q", *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        remedy = f"check the network and the system's apt sources; to see more: {' '.join(command)}"
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=FETCH_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            why = f"apt-get {arguments[0]} took more than {FETCH_TIMEOUT_S:.0f} s"
            raise Missing(self._recipe.name, why, remedy) from None
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
            why = " / ".join(errors[:3]) or f"apt-get {arguments[0]} failed: {done.stderr[-300:]}"
            raise Missing(self._recipe.name, why, remedy)


def _pretended_status(package: str) -> str:
    """Return the status entry of a package that counts as installed, newer than any real one."""
    return (
        f"Package: {package}\nStatus: install ok installed\nArchitecture: amd64\n"
        "Multi-Arch: allowed\nVersion: 99:99\nMaintainer: nobody\nDescription: pretended\n\n"
    )
