"""One session's state machine: bytes and descriptors in, events and replies out.

It owns no socket, maps nothing and closes nothing.  A session feeds it::

    steps = connection.receive(data, fds)
    answer = None
    while (event := next event of steps.send(answer)):
        answer = carry it out
    send each of connection.replies()

A message is answered after its events were carried out, and before the next one is looked at.  One
that can't be obeyed is answered with an error, and the session goes on; one that can't be
understood is a PeerError: the session ends, and closes what `Connection.close` returns.

Spec: vfio-user protocol (QEMU, docs/interop), "Client/server interactions".
"""

from __future__ import annotations

import errno
import logging
import struct
from collections.abc import Generator, Sequence
from enum import Enum
from typing import Any, ClassVar, Final, TypeAlias

import attrs
from vnic.errors import PeerError
from vnic.pci import CONFIG_SIZE, Function
from vnic.session import Reply

from vnic_vfio_user import events
from vnic_vfio_user.device_payloads import (
    N_REGIONS,
    DeviceFlags,
    DeviceInfo,
    Irq,
    IrqFlags,
    IrqInfo,
    IrqSet,
    IrqSetFlags,
    Region,
    RegionFlags,
    RegionInfo,
)
from vnic_vfio_user.messages import (
    FORMS,
    MAX_FDS,
    Command,
    Header,
    HeaderFlags,
    check_header,
    command_name,
    decode_payload,
    encode_message,
)
from vnic_vfio_user.payloads import (
    MAJOR,
    MAX_DATA,
    U64_END,
    DmaFlags,
    DmaMap,
    DmaUnmap,
    Payload,
    Raw,
    RegionAccess,
    RegionWrite,
    UnmapFlags,
    Version,
    WriteMulti,
)

log: Final = logging.getLogger("vnic.vfio_user")

CHUNK: Final = 64 * 1024
"""Bytes read at once: some thousand messages, and all that a VMM gets of the loop at a time."""

MAX_DMA_MAPS: Final = 509
"""Ranges of guest memory: as many as KVM has slots for; `vnic.memory` has room for all of them."""

REFUSALS_LOGGED: Final = 20
"""Of one session: a VMM that asks for the impossible over and over must not fill the disk."""

NO_MEMORY: Final = (
    "guest memory comes without a descriptor, so nothing of it can be reached; give the guest "
    "shared memory: -object memory-backend-memfd,id=mem,size=1G,share=on "
    "-machine memory-backend=mem"
)

Steps: TypeAlias = Generator[events.Event, Any, Payload | None]
"""A message being carried out.  Returns the reply's payload, or None for an empty one."""

_ACCESS: Final = struct.Struct(Header.LAYOUT.format + RegionAccess.LAYOUT.format.removeprefix("="))
"""A header, and what follows it in an access to a region."""

_UNMASK: Final = encode_message(
    0,
    Command.DEVICE_SET_IRQS,
    IrqSet(flags=IrqSetFlags.DATA_NONE | IrqSetFlags.ACTION_UNMASK, index=Irq.INTX, count=1),
)[2:]
"""The pin is let go, as QEMU says it after each interrupt; a message but for its number."""

_UNMASKED: Final = encode_message(0, Command.DEVICE_SET_IRQS, None, HeaderFlags.REPLY)[2:]
"""The answer."""

_READ, _WRITE = int(Command.REGION_READ), int(Command.REGION_WRITE)
_REPLY, _NO_REPLY = int(HeaderFlags.REPLY), int(HeaderFlags.NO_REPLY)


class State(Enum):
    """Spec: vfio-user, "Connection Initiation"."""

    NEW = "new"
    READY = "ready"


STATES: Final[dict[tuple[State, int], State]] = {
    (State.NEW, Command.VERSION): State.READY,
    **{
        (State.READY, command): State.READY for command in Command if command is not Command.VERSION
    },
}
"""What is absent is the peer's fault and changes nothing."""


class RefusalError(Exception):
    """A message that is understood and can't be obeyed."""

    def __init__(self, error: int, reason: str) -> None:
        super().__init__(reason)
        self.error = error


@attrs.frozen
class Range:
    """Guest memory that the VMM has announced."""

    address: int
    size: int
    mapped: bool
    """It came with a descriptor.  Ranges without one are ROMs and devices' memory, where no
    driver's buffers are."""


class Connection:
    """The server's side of one session with a VMM, for a PCI function."""

    wants: ClassVar[int] = CHUNK

    def __init__(self, function: Function, name: str = "vfio-user") -> None:
        self.name = name
        """The NIC's, for the log."""
        self.state = State.NEW
        self.ranges: dict[int, Range] = {}
        """By address."""
        self._function = function
        self._refused_memory = False
        self._irq_counts = {
            Irq.INTX: int(function.interrupt_pin),
            Irq.MSI: function.msi.vectors if function.msi else 0,
            Irq.MSIX: function.msix.vectors if function.msix else 0,
            Irq.ERR: 1,  # QEMU warns of a device without it
            Irq.REQ: 0,
        }
        self._sizes = {index: bar.size for index, bar in function.bars.items()}
        self._sizes[Region.CONFIG] = CONFIG_SIZE
        self._buffer = b""
        self._fds: list[int] = []
        """Of the message that is under way."""
        self._new_fds: list[int] = []
        """Of the last recvmsg."""
        self._replies: list[Reply] = []
        self._n_refusals = 0

    @property
    def mid_message(self) -> bool:
        """Whether a part of a message has come, and the rest hasn't."""
        return bool(self._buffer)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Generator[events.Event, Any, None]:
        """Take the bytes of one recvmsg, and the descriptors that came with them.

        Raises: PeerError, for whatever can't be understood.
        """
        self._buffer += data
        self._new_fds += fds
        return self._steps()

    def replies(self) -> list[Reply]:
        """Return the replies that are due, once."""
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> list[int]:
        """Return the descriptors that came in and went nowhere yet: close them."""
        fds = self._fds + self._new_fds
        self._fds, self._new_fds = [], []
        return fds

    # ---- messages --------------------------------------------------------------------------------

    def _steps(self) -> Generator[events.Event, Any, None]:
        data, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= Header.SIZE:
            access = self._plain_access(data, at, end)
            if access is not None:
                number, command, size, flags, _, offset, region, count = access
                at += size
                if command == _READ:
                    content = yield events.ReadRegion(region, offset, count)
                else:
                    yield events.WriteRegion(region, offset, data[at - count : at])
                    content = b""
                if not flags:
                    size, flags = _ACCESS.size + len(content), _REPLY
                    reply = _ACCESS.pack(number, command, size, flags, 0, offset, region, count)
                    self._replies.append((reply + content, ()))
                continue
            if data.startswith(_UNMASK, at + 2) and self._plain and self._irq_counts[Irq.INTX]:
                yield events.MaskPin(False)
                self._replies.append((data[at : at + 2] + _UNMASKED, ()))
                at += 2 + len(_UNMASK)
                continue
            header = Header.decode(data[at : at + Header.SIZE])
            form = check_header(header)
            if at + header.size > end:
                break
            content = data[at + Header.SIZE : at + header.size]
            at += header.size
            if at == end:
                self._take_new_fds()
            payload = decode_payload(header.command, form, content, len(self._fds))
            yield from self._obey(header, payload)
            if self._fds:
                yield events.Discard(self._take_fds())
        self._buffer = data[at:]
        if at != end:
            self._take_new_fds()

    @property
    def _plain(self) -> bool:
        """Whether a message means what its bytes say, and brings no descriptors."""
        return self.state is State.READY and not self._fds and not self._new_fds

    def _plain_access(self, data: bytes, at: int, end: int) -> tuple[int, ...] | None:
        """Return the fields of a whole message that reads or writes registers, and nothing odd.

        Nearly all messages are, and the guest stands still until a read is answered: this path
        takes a third of the time of the other, which does the same, and everything else.
        """
        if end - at < _ACCESS.size or not self._plain:
            return None
        fields = _ACCESS.unpack_from(data, at)
        _, command, size, flags, _, offset, region, count = fields
        if (
            size == (_ACCESS.size if command == _READ else _ACCESS.size + count)
            and (command == _READ or (command == _WRITE and size <= end - at))
            and flags in (0, _NO_REPLY)
            and 0 < count <= MAX_DATA
            and offset + count <= self._sizes.get(region, 0)
        ):
            return fields
        return None

    def _take_new_fds(self) -> None:
        """Give what came with this chunk to its last message, the one whose bytes end it.

        A stream's recvmsg returns bytes from before a descriptor together with those that it came
        with, and none from after.
        """
        self._fds += self._new_fds
        self._new_fds = []

    def _obey(self, header: Header, payload: Payload) -> Generator[events.Event, Any, None]:
        command = header.command
        if (self.state, command) not in STATES and command in FORMS:
            raise PeerError(
                f"{command_name(command)}: the session is {self.state.value}; VERSION comes first, "
                f"and once"
            )
        flags, error, reply = HeaderFlags.REPLY, 0, None
        try:
            if command not in FORMS:
                raise RefusalError(errno.EOPNOTSUPP, "is not served")
            outcome = getattr(self, f"_do_{Command(command).name}")(payload)
            reply = (yield from outcome) if isinstance(outcome, Generator) else outcome
            self.state = STATES[self.state, command]
        except RefusalError as refusal:
            flags, error = HeaderFlags.REPLY | HeaderFlags.ERROR, refusal.error
            self._log(f"{command_name(command)}: refused: {refusal}")
        if not header.flags & HeaderFlags.NO_REPLY:
            fds: tuple[int, ...] = ()
            if isinstance(reply, RegionInfo) and reply.areas:
                mappable = self._function.bars[reply.index].mappable
                fds = (mappable.fd,) if mappable else ()
            self._replies.append((encode_message(header.id, command, reply, flags, error), fds))

    def _log(self, text: str) -> None:
        self._n_refusals += 1
        if self._n_refusals <= REFUSALS_LOGGED:
            more = "; more of these are not logged" * (self._n_refusals == REFUSALS_LOGGED)
            log.warning("%s: %s%s", self.name, text, more)

    def _take_fds(self) -> tuple[int, ...]:
        fds, self._fds = tuple(self._fds), []
        return fds

    # ---- the session -----------------------------------------------------------------------------

    def _do_VERSION(self, payload: Version) -> Version:
        if payload.major != MAJOR:
            raise PeerError(f"VERSION: {payload.major}.{payload.minor}; {MAJOR}.0 is served")
        if payload.capabilities is None:
            return Version()
        mine: dict[str, Any] = {
            "max_msg_fds": MAX_FDS,
            "max_data_xfer_size": MAX_DATA,
            "max_dma_maps": MAX_DMA_MAPS,
            "pgsizes": 4096,
        }
        if payload.capabilities.get("write_multiple") is True:
            mine["write_multiple"] = True
        # QEMU reads the reply into the buffer of its request.
        room = len(payload.encode())
        while mine and len(Version(capabilities=mine).encode()) > room:
            mine.popitem()
        return Version(capabilities=mine or None)

    def _do_DEVICE_RESET(self, payload: Payload) -> Steps:
        yield events.Reset()
        return None

    # ---- memory ----------------------------------------------------------------------------------

    def _do_DMA_MAP(self, payload: DmaMap) -> Steps:
        new, flags = payload, payload.flags
        where = f"{new.size:#x} bytes at {new.address:#x}"
        if not flags or flags & ~int(DmaFlags.READ | DmaFlags.WRITE):
            raise RefusalError(errno.EINVAL, f"{where}: flags {flags:#x}; READ 0x1, WRITE 0x2")
        if not new.size or max(new.address, new.offset) > U64_END - new.size:
            raise RefusalError(errno.EINVAL, f"{where}: is empty, or wraps beyond 64 bits")
        for other in self.ranges.values():
            if new.address < other.address + other.size and other.address < new.address + new.size:
                raise RefusalError(
                    errno.EEXIST, f"{where}: overlaps {other.size:#x} at {other.address:#x}"
                )
        if len(self.ranges) == MAX_DMA_MAPS:
            raise RefusalError(errno.ENOSPC, f"{where}: there are {MAX_DMA_MAPS} ranges, the most")
        fds = self._take_fds()
        if fds:
            # Memory can't be mapped for writing alone; the device reads none that it only writes.
            writable = bool(flags & DmaFlags.WRITE)
            why_not = yield events.MapMemory(
                address=new.address,
                size=new.size,
                offset=new.offset,
                writable=writable,
                fd=fds[0],
            )
            if why_not is not None:
                raise RefusalError(errno.EINVAL, why_not)
        elif flags & DmaFlags.WRITE and not self._reachable:
            # QEMU hears no refusal of a map, and dies of an assertion if it is disconnected here;
            # but it asks for the device next, and gives up in order if there is none.
            self._refused_memory = True
            raise RefusalError(errno.EINVAL, f"{where}: {NO_MEMORY}")
        self.ranges[new.address] = Range(new.address, new.size, bool(fds))
        return None

    def _do_DMA_UNMAP(self, payload: DmaUnmap) -> Steps:
        if payload.flags == UnmapFlags.ALL:
            if payload.address or payload.size:
                raise RefusalError(errno.EINVAL, "ALL with a range")
            gone = list(self.ranges.values())
        elif payload.flags:
            raise RefusalError(errno.EOPNOTSUPP, f"flags {payload.flags:#x}: no dirty pages")
        else:
            known = self.ranges.get(payload.address)
            if known is None or known.size != payload.size:
                text = f"no range of {payload.size:#x} bytes at {payload.address:#x} was mapped"
                raise RefusalError(errno.EINVAL, text)
            gone = [known]
        for known in gone:
            del self.ranges[known.address]
            if known.mapped:
                yield events.UnmapMemory(known.address, known.size)
        return attrs.evolve(payload, argsz=DmaUnmap.LAYOUT.size)

    # ---- what the device has ---------------------------------------------------------------------

    def _do_DEVICE_GET_INFO(self, payload: DeviceInfo) -> DeviceInfo:
        _check_argsz(payload)
        if self._refused_memory and not self._reachable:
            raise RefusalError(errno.ENXIO, NO_MEMORY)
        flags = DeviceFlags.RESET | DeviceFlags.PCI
        return DeviceInfo(flags=flags, num_regions=N_REGIONS, num_irqs=len(Irq))

    def _do_DEVICE_GET_REGION_INFO(self, payload: RegionInfo) -> RegionInfo:
        _check_argsz(payload)
        if payload.index >= N_REGIONS:
            raise RefusalError(errno.EINVAL, f"region {payload.index}; there are {N_REGIONS}")
        size = self._sizes.get(payload.index, 0)
        flags = RegionFlags.READ | RegionFlags.WRITE if size else RegionFlags(0)
        info = RegionInfo(index=payload.index, flags=flags, size=size)
        bar = self._function.bars.get(payload.index)
        if bar is None or bar.mappable is None or not bar.mappable.areas:
            return info
        areas = [(area.offset, area.size) for area in bar.mappable.areas]
        full = attrs.evolve(info, areas=areas)
        argsz = len(full.encode())
        if payload.argsz < argsz:  # the sender has no room, and asks again with more
            return attrs.evolve(info, argsz=argsz, flags=flags | RegionFlags.CAPS)
        return attrs.evolve(
            full,
            argsz=argsz,
            flags=flags | RegionFlags.MMAP | RegionFlags.CAPS,
            cap_offset=RegionInfo.LAYOUT.size,
        )

    def _do_DEVICE_GET_IRQ_INFO(self, payload: IrqInfo) -> IrqInfo:
        _check_argsz(payload)
        count = self._irq_count(payload.index)
        flags = IrqFlags.EVENTFD if count else IrqFlags(0)
        if payload.index == Irq.INTX and count:
            flags |= IrqFlags.MASKABLE | IrqFlags.AUTOMASKED
        return IrqInfo(index=payload.index, flags=flags, count=count)

    # ---- interrupts ------------------------------------------------------------------------------

    def _do_DEVICE_SET_IRQS(self, payload: IrqSet) -> Steps:
        index, start, count = payload.index, payload.start, payload.count
        n = self._irq_count(index)
        if start + count > n:
            raise RefusalError(
                errno.EINVAL, f"{count} from {start} of {_irq(index)}, which has {n}"
            )
        data, action = payload.flags & 0b111, payload.flags & ~0b111
        fds = self._take_fds() if data == IrqSetFlags.DATA_EVENTFD else ()
        if data == IrqSetFlags.DATA_EVENTFD and len(fds) not in (0, count):
            self._fds += fds
            text = f"{len(fds)} descriptors came along, {count} or none belong to {count} of it"
            raise PeerError(f"DEVICE_SET_IRQS: {text}")
        if action == IrqSetFlags.ACTION_TRIGGER and data == IrqSetFlags.DATA_EVENTFD and count:
            yield events.SetTriggers(index, start, fds or (None,) * count)
        elif payload.flags == IrqSetFlags.ACTION_TRIGGER | IrqSetFlags.DATA_NONE and not count:
            yield events.DisableIrqs(index)
        elif (
            action == IrqSetFlags.ACTION_UNMASK
            and data == IrqSetFlags.DATA_EVENTFD
            and index == Irq.INTX
            and count
        ):
            yield events.SetUnmask(fds[0] if fds else None)
        elif data in (IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL) and count:
            chosen = [i for i in range(count) if data == IrqSetFlags.DATA_NONE or payload.data[i]]
            if action == IrqSetFlags.ACTION_TRIGGER:
                for i in chosen:
                    yield events.Trigger(index, start + i)
            elif index == Irq.INTX and action in (
                IrqSetFlags.ACTION_MASK,
                IrqSetFlags.ACTION_UNMASK,
            ):
                for _ in chosen:
                    yield events.MaskPin(action == IrqSetFlags.ACTION_MASK)
            else:
                raise _impossible(payload)
        else:
            self._fds += fds
            raise _impossible(payload)
        return None

    # ---- accesses --------------------------------------------------------------------------------

    def _do_REGION_READ(self, payload: RegionAccess) -> Steps:
        region, offset, count = payload.region, payload.offset, payload.count
        self._check_access(region, offset, count)
        data: bytes = yield events.ReadRegion(region, offset, count)
        return RegionAccess(offset, region, count, data)

    def _do_REGION_WRITE(self, payload: RegionWrite) -> Steps:
        region, offset, count = payload.region, payload.offset, payload.count
        self._check_access(region, offset, count)
        yield events.WriteRegion(region, offset, payload.data)
        return RegionAccess(offset, region, count)

    def _do_REGION_WRITE_MULTI(self, payload: WriteMulti) -> Steps:
        for write in payload.writes:
            self._check_access(write.region, write.offset, write.count)
            yield events.WriteRegion(write.region, write.offset, write.data)
        return Raw(WriteMulti.LAYOUT.pack(len(payload.writes)))

    # ---- the parts of these ----------------------------------------------------------------------

    @property
    def _reachable(self) -> bool:
        """Whether any guest memory can be reached."""
        return any(known.mapped for known in self.ranges.values())

    def _check_access(self, region: int, offset: int, count: int) -> None:
        size = self._sizes.get(region, 0)
        if not 0 < count <= MAX_DATA or offset + count > size:
            raise RefusalError(
                errno.EINVAL,
                f"{count:#x} bytes at {offset:#x} of region {region}, which has {size:#x}; at most "
                f"{MAX_DATA:#x} at once",
            )

    def _irq_count(self, index: int) -> int:
        if index >= len(Irq):
            raise RefusalError(errno.EINVAL, f"interrupt kind {index}; there are {len(Irq)}")
        return self._irq_counts[Irq(index)]


def _check_argsz(payload: DeviceInfo | RegionInfo | IrqInfo) -> None:
    if payload.argsz < payload.LAYOUT.size:
        text = f"argsz {payload.argsz}: the reply has {payload.LAYOUT.size} bytes"
        raise RefusalError(errno.EINVAL, text)


def _irq(index: int) -> str:
    return Irq(index).name


def _impossible(payload: IrqSet) -> RefusalError:
    return RefusalError(
        errno.EINVAL,
        f"flags {payload.flags:#x} with {payload.count} of {_irq(payload.index)}: one of DATA "
        f"(bits 0-2) and one of ACTION (3-5), as VFIO has them",
    )
