"""The stand-in: the system calls of a system with the netmap module, made in this process."""

from __future__ import annotations

import errno
import mmap
import os
import select
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import Structure, sizeof
from typing import TYPE_CHECKING, Final, Literal, Self, TypeVar

from vnic_netmap.abi import (
    NIOCCTRL,
    NIOCGINFO,
    NIOCREGIF,
    NIOCRXSYNC,
    NIOCTXSYNC,
    NetmapReq,
    Nmreq,
    NmreqHeader,
)
from vnic_netmap.testing.descriptor import Descriptor, Mapping
from vnic_netmap.testing.directory import Directory
from vnic_netmap.testing.legacy import Legacy
from vnic_netmap.testing.memory import RING_SIZE, SLOT_SIZE
from vnic_netmap.testing.nics import Nic
from vnic_netmap.testing.ports import Shape, refuse
from vnic_netmap.testing.requests import VERSIONS, Requests, unbind_and_put
from vnic_netmap.testing.user_memory import UserMemory

if TYPE_CHECKING:
    from typing_extensions import Buffer

Platform = Literal["linux", "freebsd"]
Call = NetmapReq | int | Literal["open", "mmap"]
"""A system call, by name; an ioctl, by its number; what goes through NIOCCTRL, by its type."""

T = TypeVar("T", bound=Structure)

IOC_VOID: Final = 0x2000_0000
"""How FreeBSD marks an ioctl without an argument."""
FREEBSD_ERRNOS: Final = {errno.EOPNOTSUPP: 45, errno.EMSGSIZE: 40}
OLD_VERSIONS: Final = (11, 15)
"""Versions that modules took when there was no NIOCCTRL."""


class StandIn:
    """A `vnic_netmap.system.System` with a netmap module, and nothing to do with the kernel's.

    Everything happens inside these calls, in the caller's thread.  There is no call in which the
    module could look when epoll does: a descriptor is as the last call that concerned it left it.

    ``control``: whether the module knows NIOCCTRL; an old one doesn't.
    """

    def __init__(self, *, platform: Platform = "linux", control: bool = True) -> None:
        self._freebsd = platform == "freebsd"
        void = IOC_VOID if self._freebsd else 0
        self._syncs = {
            void | NIOCTXSYNC & 0xFFFF: True,
            void | NIOCRXSYNC & 0xFFFF: False,
        }
        self._user_memory = UserMemory()
        self._directory = Directory(self._user_memory)
        self._requests = Requests(self._directory, self._user_memory)
        self._control = control
        self._legacy = Legacy(self._requests, VERSIONS if control else OLD_VERSIONS)
        self._open: dict[int, Descriptor] = {}
        self._held: list[Descriptor] = []
        self._failures: defaultdict[Call, deque[int]] = defaultdict(deque)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        left = self.left_open
        self.shut_down()
        assert kind is not None or not left, f"left open: {', '.join(left)}"

    def shut_down(self) -> None:
        """Close what was left open, and end."""
        for fd in list(self._open):
            self.close(fd)
        for descriptor in list(self._held):
            descriptor.n_holders = 1
            self._let_go(descriptor)
        self._directory.close()
        self._user_memory.close()

    @property
    def left_open(self) -> list[str]:
        """What user space still has: descriptors, and mappings whose descriptor is closed."""
        return [
            f"{'descriptor' if descriptor in self._open.values() else 'mapping'} of "
            f"{descriptor.binding.port.name if descriptor.binding else 'no port'}"
            for descriptor in self._held
        ]

    # ---- system calls ----------------------------------------------------------------------------

    def open(self) -> int:
        """Open ``/dev/netmap``."""
        self._fail("open")
        descriptor = Descriptor()
        self._open[descriptor.fd] = descriptor
        self._held.append(descriptor)
        return descriptor.fd

    def ioctl(self, fd: int, request: int, argument: Buffer | None = None) -> None:
        """Make a request; the argument, a struct, is changed in place."""
        descriptor = self._descriptor(fd)
        with self._native_errnos():
            self._fail(request)
            if request in self._syncs:
                descriptor.sync(is_tx=self._syncs[request])
            elif request == NIOCCTRL and self._control:
                with _in_place(NmreqHeader, argument) as header:
                    self._fail(header.nr_reqtype)
                    eopnotsupp = self._errno(errno.EOPNOTSUPP)
                    self._requests.control(descriptor, header, eopnotsupp)
            elif request == NIOCREGIF:
                with _in_place(Nmreq, argument) as nmr:
                    self._legacy.regif(descriptor, nmr)
            elif request == NIOCGINFO:
                with _in_place(Nmreq, argument) as nmr:
                    self._legacy.ginfo(descriptor, nmr)
            else:
                refuse(errno.ENXIO if self._freebsd else errno.EOPNOTSUPP)

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map the memory of the port that the descriptor is bound to."""
        self._fail("mmap")
        descriptor = self._descriptor(fd)
        if descriptor.binding is None or length > descriptor.binding.memory.size:
            refuse(errno.EINVAL)
        mapping = Mapping(descriptor.binding.memory.fd, length)
        descriptor.n_holders += 1
        mapping.on_close = lambda: self._let_go(descriptor)
        return mapping

    def close(self, fd: int) -> None:
        """Close a descriptor.  Its port stays registered as long as it is mapped."""
        descriptor = self._descriptor(fd)
        del self._open[fd]
        descriptor.close_fd()
        self._let_go(descriptor)

    def poll(self, fd: int, events: int) -> int:
        """Do what poll does, syncs included, and don't wait; return what it would say.

        Only this looks at the rings; a poll, select or epoll of the descriptor sees what was so
        when the module last looked.
        """
        wants_rx, wants_tx = bool(events & select.POLLIN), bool(events & select.POLLOUT)
        state = self._descriptor(fd).poll(wants_rx, wants_tx, lazy=self._freebsd)
        return (
            (select.POLLIN if state.readable else 0)
            | (select.POLLOUT if state.writable else 0)
            | (select.POLLERR if state.error else 0)
        )

    # ---- what a test can do ----------------------------------------------------------------------

    def add_nic(
        self, name: str, *, rings: int = 1, slots: int = 1024, host_rings: int = 1, mtu: int = 1500
    ) -> Nic:
        """Return a new interface of the host; the caller holds what is at its other sides."""
        shape = Shape(
            tx_slots=slots,
            rx_slots=slots,
            tx_rings=rings,
            rx_rings=rings,
            host_tx_rings=host_rings,
            host_rx_rings=host_rings,
        )
        nic = Nic(name, self._directory.nic_memory, shape, mtu=mtu).get()
        self._directory.interfaces[name] = nic
        return nic

    def delete(self, name: str) -> None:
        """Take an interface away, from under those who have it open."""
        interface = self._directory.interfaces.pop(name)
        interface.gone = True
        interface.leave()
        for descriptor in self._held:
            descriptor.show()
        interface.put()

    def fail(self, call: Call, error: int, *, times: int = 1) -> None:
        """Have a system call fail the next time, or times: ``fail(NIOCTXSYNC, errno.EIO)``."""
        self._failures[call] += [error] * times

    def scribble(self, fd: int, byte: int = 0xA5) -> None:
        """Overwrite the rings of a descriptor, slots and all, as stray writes of its user would."""
        binding = self._descriptor(fd).binding
        assert binding is not None, "bound to no port"
        for ring in (*binding.tx, *binding.rx):
            n = RING_SIZE + SLOT_SIZE * ring.n_slots
            ring.view[ring.at : ring.at + n] = bytes([byte]) * n

    # ---- within ----------------------------------------------------------------------------------

    def _descriptor(self, fd: int) -> Descriptor:
        return self._open.get(fd) or refuse(errno.EBADF)

    def _let_go(self, descriptor: Descriptor) -> None:
        descriptor.n_holders -= 1
        if descriptor.n_holders == 0:
            self._held.remove(descriptor)
            unbind_and_put(descriptor)
            descriptor.close()

    def _fail(self, call: Call) -> None:
        if failures := self._failures.get(call):
            refuse(failures.popleft())

    def _errno(self, number: int) -> int:
        return FREEBSD_ERRNOS.get(number, number) if self._freebsd else number

    @contextmanager
    def _native_errnos(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            number = error.errno or 0
            raise OSError(self._errno(number), os.strerror(number)) from None


@contextmanager
def _in_place(kind: type[T], argument: Buffer | None) -> Iterator[T]:
    """Give the struct of an ioctl's argument, and write it back, whatever happens.

    Raises: OSError: EINVAL, there is none; EFAULT, it is too short.
    """
    if argument is None:
        refuse(errno.EINVAL)
    with memoryview(argument).cast("B") as content:
        if len(content) < sizeof(kind):
            refuse(errno.EFAULT)
        struct = kind.from_buffer_copy(content)
        try:
            yield struct
        finally:
            content[: sizeof(kind)] = bytes(struct)
