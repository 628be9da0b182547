"""One open netmap port: its descriptor, its memory, its rings."""

from __future__ import annotations

import errno
import logging
import mmap
from typing import Final, Self

from vnic.errors import BackendError, ConfigError

from vnic_netmap import system
from vnic_netmap.abi import NETMAP_VNET_HDR_LENS, NIOCRXSYNC, NIOCTXSYNC, NrFlag, NrMode
from vnic_netmap.control import Registration, get_header_len, register, set_header_len
from vnic_netmap.names import MONITOR, PortName
from vnic_netmap.options import NetmapOptions
from vnic_netmap.ring_kernel import Rings
from vnic_netmap.system import DEVICE

log = logging.getLogger("vnic.netmap")

_HEADER_LEN: Final = 12
"""What a port of a switch gets: all that a burst's headers say, with room for num_buffers."""
_HEADER_LEN_MAX: Final = max(NETMAP_VNET_HDR_LENS)
_ALL: Final = 1 << 31


class Port:
    """A port that is registered and mapped.  Frames are moved by `rings`, and by both syncs."""

    rings: Rings
    header_len: int
    """Bytes of virtio-net header in front of each frame."""

    def __init__(self, shown: str, name: PortName) -> None:
        self._shown = shown
        self._name = name
        self._system = system.current
        self._mapping: mmap.mmap | None = None
        self.fd = -1

    @classmethod
    def open(cls, shown: str, name: PortName, options: NetmapOptions) -> Self:
        """Open a port; ``shown`` is its name in errors.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        port = cls(shown, name)
        try:
            port._open(options)
        except BaseException:
            port.close()
            raise
        return port

    def txsync(self) -> None:
        """Have the module send what is in the transmit rings, and free what has left.

        Asked for by name always: poll does it in some cases, on FreeBSD in fewer than on Linux.

        Raises: OSError, where the port is gone.
        """
        self._system.ioctl(self.fd, NIOCTXSYNC)

    def rxsync(self) -> None:
        """Have the module take back the slots that were consumed, and show what has come.

        Raises: OSError, where the port is gone.
        """
        self._system.ioctl(self.fd, NIOCRXSYNC)

    def close(self) -> None:
        """Let go of the port.  Twice is allowed, and while views of its memory are alive: then the
        port stays registered until the last of them has gone.
        """
        if hasattr(self, "rings"):
            self.rings.close()
        mapping, self._mapping = self._mapping, None
        if mapping is not None:
            try:
                mapping.close()
            except BufferError:
                log.warning(
                    "%s: somebody still has a view of its memory; the port is let go with that",
                    self._shown,
                )
        fd, self.fd = self.fd, -1
        if fd >= 0:
            self._system.close(fd)

    # ---- opening

    def _open(self, options: NetmapOptions) -> None:
        name = self._name
        try:
            self.fd = self._system.open()
        except OSError as error:
            raise BackendError(not_opened(self._shown, error)) from None
        # ACCEPT_VNET_HDR: else a port that was left with a header can't be opened.  NO_TX_POLL:
        # what is to leave is told with TXSYNC, so that poll need not look after it.
        flags = name.flags | NrFlag.ACCEPT_VNET_HDR | NrFlag.NO_TX_POLL
        try:
            registration = register(
                self._system,
                self.fd,
                name,
                flags,
                n_slots=options.slots or 0,
                n_rings=options.rings or 0,
            )
        except OSError as error:
            raise _not_registered(self._shown, name, error) from None
        try:
            self._mapping = self._system.mmap(self.fd, registration.memsize)
            self.rings = Rings(self._mapping, registration.offset, *_bound(name, registration))
        except (OSError, ValueError) as error:
            raise BackendError(
                f"{self._shown}: its memory of {registration.memsize:#x} bytes is of no use: "
                f"{error}; look at what the module says (dmesg)"
            ) from None
        self.header_len = self._agree_on_header(registration, options.header)
        fragments = name.takes_fragments if options.fragments is None else options.fragments
        # Fault of the module: where the receiver's header is longer than ours it moves the first
        # slot's bytes up by the difference, and beyond the end of a buffer that is full.
        spare = _HEADER_LEN_MAX - self.header_len if name.is_vale else 0
        self.rings.set_framing(self.header_len, spare, fragments)

    def _agree_on_header(self, registration: Registration, wanted: int | None) -> int:
        """Return the length of the port's virtio-net header, having set it where it must be.

        Raises: ConfigError or BackendError.
        """
        name, legacy = self._name, registration.is_legacy
        try:
            has = get_header_len(self._system, self.fd, name, legacy)
        except OSError as error:
            log.debug("%s: header length unknown, taken for 0: %s", self._shown, error)
            has = 0
        if has not in NETMAP_VNET_HDR_LENS:
            raise BackendError(
                f"{self._shown}: its virtio-net header has {has} bytes; only "
                f"{', '.join(map(str, NETMAP_VNET_HDR_LENS))} are known here"
            )
        if wanted is None:
            wanted = has or (_HEADER_LEN if name.is_vale else 0)
        if wanted == has:
            return has
        if not name.is_vale:
            raise ConfigError(
                f"{self._shown}: header={wanted}: only ports of a VALE switch can have a "
                f"virtio-net header; leave the option out"
            )
        if wanted == 0:
            # Fault of the module: see set_header_len.
            raise ConfigError(
                f"{self._shown}: header=0: the port has one of {has} bytes already, and the module "
                f"can't take it away without harm; leave the option out, or delete the port first"
            )
        try:
            set_header_len(self._system, self.fd, name, legacy, wanted)
            # Frames that came until now have no header.
            self.rxsync()
            self.rings.discard(_ALL)
            self.rxsync()
        except OSError as error:
            raise BackendError(
                f"{self._shown}: cannot have a virtio-net header of {wanted} bytes: {_why(error)}; "
                f"give header={has}"
            ) from None
        return wanted


def _bound(name: PortName, registration: Registration) -> tuple[list[int], list[int]]:
    """Return the numbers of the rings that are ours, to transmit and to receive."""

    def of(n: int, n_host: int) -> list[int]:
        match name.mode:
            # Where only the other direction has a ring of this number, the first one stands in.
            case NrMode.ONE_NIC:
                return [name.ring if name.ring < n else 0]
            case NrMode.ONE_SW:
                return [n + (name.ring if name.ring < n_host else 0)]
            case NrMode.SW:
                return list(range(n, n + n_host))
            case NrMode.NIC_SW:
                return list(range(n + n_host))
            case _:
                return list(range(n))

    tx = of(registration.n_tx, registration.n_host_tx)
    rx = of(registration.n_rx, registration.n_host_rx)
    # A monitor only listens; what it would send the module refuses.
    return (
        [] if name.flags & (NrFlag.RX_RINGS_ONLY | MONITOR) else tx,
        [] if name.flags & NrFlag.TX_RINGS_ONLY else rx,
    )


# ---- what is wrong, and what to do ------------------------------------------------------------


def not_opened(shown: str, error: OSError) -> str:
    """Say why ``/dev/netmap`` can't be opened."""
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        remedy = "load the module (Linux: modprobe netmap; FreeBSD: kldload netmap)"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = (
            f"run as root, or give this user the device (chmod 0660 {DEVICE}; chgrp GROUP "
            f"{DEVICE}): whoever has it can listen and send on every NIC"
        )
    else:
        remedy = "free what this process or the host has too many of"
    return f"{shown}: cannot open {DEVICE}: {_why(error)}; {remedy}"


def _not_registered(shown: str, name: PortName, error: OSError) -> ConfigError | BackendError:
    """Say why the module refused a port.  It says little itself, but in the kernel's log."""
    what = f"{shown}: the module refuses this port: {_why(error)}"
    log_of_kernel = "the kernel's log (dmesg) may say more"
    match error.errno:
        case errno.ENXIO | errno.ENODEV:
            return BackendError(
                f"{what}; is there an interface {name.port}? (ip link); netmap takes it with its "
                f"own driver, or as any other in emulated mode (admode=2)"
            )
        case errno.EBUSY:
            return BackendError(f"{what}: another program has it; end that, or choose another port")
        case errno.ENOMEM:
            limits = "a host has 8 switches at the most, each with 254 ports, and "
            return BackendError(
                f"{what}; {limits if name.is_vale else ''}a port takes about 40 MB at 1024 slots: "
                f"give fewer, as in netmap:{name.port},slots=256; or end other ports, or let the "
                f"module have more (if_num, ring_num, buf_num)"
            )
        case errno.EINVAL:
            return BackendError(
                f"{what}; a ring that it has not, other rings or slots than it has already, or an "
                f"MTU above the buffers' size (2048: ip link set dev {name.port} mtu 1500); "
                f"{log_of_kernel}"
            )
        case errno.EOPNOTSUPP | errno.ENOSYS:
            return BackendError(f"{what}: it was built without this kind of port; {log_of_kernel}")
        case errno.EPERM | errno.EACCES:
            return BackendError(f"{what}; run as root, or with CAP_NET_ADMIN")
        case _:
            return BackendError(f"{what}; {log_of_kernel}")


def _why(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
