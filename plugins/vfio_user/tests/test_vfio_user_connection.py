from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.errors import PeerError
from vnic.pci import Area, Bar, Function, Identity, Mappable, Msi, MsiX
from vnic_vfio_user import events
from vnic_vfio_user.connection import MAX_DMA_MAPS, REFUSALS_LOGGED, Connection
from vnic_vfio_user.messages import (
    FORMS,
    MAX_DATA,
    Command,
    DeviceInfo,
    DmaFlags,
    DmaMap,
    DmaUnmap,
    Empty,
    Header,
    HeaderFlags,
    Irq,
    IrqInfo,
    IrqSet,
    IrqSetFlags,
    Raw,
    RegionAccess,
    RegionInfo,
    RegionWrite,
    UnmapFlags,
    Version,
    WriteMulti,
    encode_message,
)

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
RW = int(DmaFlags.READ | DmaFlags.WRITE)
TRIGGER, MASK, UNMASK = (
    IrqSetFlags.ACTION_TRIGGER,
    IrqSetFlags.ACTION_MASK,
    IrqSetFlags.ACTION_UNMASK,
)
NONE, BOOL, EVENTFD = IrqSetFlags.DATA_NONE, IrqSetFlags.DATA_BOOL, IrqSetFlags.DATA_EVENTFD
REGISTERS: Any = SimpleNamespace()


class Peer:
    """Feeds a connection, and answers its events as a session does."""

    def __init__(self, *, start: bool = True, **description: Any) -> None:
        description.setdefault("bars", [Bar(index=0, size=0x20000, registers=REGISTERS)])
        description.setdefault(
            "capabilities",
            [Msi(vectors=4), MsiX(vectors=20, table_bar=0, pba_bar=0, pba_offset=1024)],
        )
        identity = Identity(vendor=1, device=2, class_code=0)
        self.connection = Connection(Function(SimpleNamespace(), identity, **description))
        self.answers: dict[type, Any] = {events.ReadRegion: lambda e: bytes(e.count)}
        self.events: list[Any] = []
        if start:
            self.ask(Command.VERSION, Version())
            self.events.clear()

    def feed(self, data: bytes, fds: Any = ()) -> None:
        steps, answer = self.connection.receive(data, fds), None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return
            self.events.append(event)
            answer = self.answers.get(type(event), lambda event: None)(event)

    def ask(self, command: int, payload: Any = None, fds: Any = (), flags: int = 0) -> Any:
        """Return (error, payload of the reply); None without a reply."""
        self.feed(encode_message(5, command, payload, HeaderFlags(flags)), fds)
        replies = self.connection.replies()
        if not replies:
            return None
        ((data, _),) = replies
        header = Header.decode(data[:16])
        assert (header.id, header.command, header.size) == (5, command, len(data))
        assert header.flags in (HeaderFlags.REPLY, HeaderFlags.REPLY | HeaderFlags.ERROR)
        assert header.error < 4096, "an errno is positive and small"
        return header.error, data[16:]

    def map(self, address: int, size: int, flags: int = RW, fds: Any = (9,)) -> int:
        error, content = self.ask(
            Command.DMA_MAP, DmaMap(flags=flags, address=address, size=size), fds
        )
        assert content == b""
        return int(error)

    def unmap(self, address: int, size: int, flags: int = 0) -> int:
        payload = DmaUnmap(flags=flags, address=address, size=size)
        error, content = self.ask(Command.DMA_UNMAP, payload)
        assert error or content == payload.encode()
        return int(error)

    def irqs(
        self, flags: int, index: int, start: int, count: int, fds: Any = (), **rest: Any
    ) -> int:
        payload = IrqSet(flags=int(flags), index=index, start=start, count=count, **rest)
        return int(self.ask(Command.DEVICE_SET_IRQS, payload, fds)[0])

    def taken(self) -> list[Any]:
        happened, self.events = self.events, []
        return happened


# ---- version -------------------------------------------------------------------------------------


def test_capabilities_are_answered_in_no_more_bytes_than_they_came_in() -> None:
    peer = Peer(start=False)
    request = Version(
        minor=1, capabilities={"max_msg_fds": 8, "write_multiple": True, "x": "y" * 99}
    )
    _, content = peer.ask(Command.VERSION, request)
    reply = Version.decode(content)
    assert (reply.major, reply.minor) == (0, 0)
    assert reply.capabilities == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 4096,
        "max_dma_maps": 509,
        "pgsizes": 4096,
        "write_multiple": True,
    }
    assert content.endswith(b"\0")
    for n in range(0, 100, 7):
        request = Version(capabilities={"x": "y" * n})
        _, content = Peer(start=False).ask(Command.VERSION, request)
        assert len(content) <= len(request.encode())
        assert "write_multiple" not in (Version.decode(content).capabilities or {})


def test_no_capabilities_are_answered_with_none() -> None:
    assert Peer(start=False).ask(Command.VERSION, Version()) == (0, bytes(4))


def test_another_major_version_ends_the_session() -> None:
    with pytest.raises(PeerError, match=r"VERSION: 1\.0; 0\.0 is served"):
        Peer(start=False).ask(Command.VERSION, Version(major=1))


def test_version_comes_first_and_once() -> None:
    for command in set(FORMS) - {Command.VERSION}:
        peer = Peer(start=False)
        with pytest.raises(PeerError, match="the session is new"):
            peer.ask(command, _any_payload(command))
    with pytest.raises(PeerError, match="the session is ready"):
        Peer().ask(Command.VERSION, Version())


def _any_payload(command: int) -> Any:
    payloads = {
        Command.DMA_MAP: DmaMap(flags=3, address=0, size=4096),
        Command.DMA_UNMAP: DmaUnmap(address=0, size=4096),
        Command.DEVICE_GET_INFO: DeviceInfo(),
        Command.DEVICE_GET_REGION_INFO: RegionInfo(index=0),
        Command.DEVICE_GET_IRQ_INFO: IrqInfo(index=0),
        Command.DEVICE_SET_IRQS: IrqSet(flags=0x21, index=0, count=0),
        Command.REGION_READ: RegionAccess(0, 0, 4),
        Command.REGION_WRITE: RegionWrite(0, 0, 1, b"a"),
        Command.DEVICE_RESET: Empty(),
        Command.REGION_WRITE_MULTI: WriteMulti(()),
    }
    return payloads[Command(command)]


@pytest.mark.parametrize("command", [Command.DEVICE_FEATURE, Command.DMA_READ, 77])
def test_what_is_not_served_is_refused_and_the_session_goes_on(command, caplog) -> None:
    peer = Peer()
    assert peer.ask(command, Raw(bytes(33))) == (errno.EOPNOTSUPP, b"")
    assert peer.ask(Command.DEVICE_RESET, Empty()) == (0, b"")
    assert "is not served" in caplog.text


def test_refusals_fill_no_disk(caplog) -> None:
    peer = Peer()
    for _ in range(1000):
        peer.ask(77)
    assert len(caplog.records) == REFUSALS_LOGGED
    assert caplog.messages[-1].endswith("; more of these are not logged")


# ---- the stream ----------------------------------------------------------------------------------


def test_a_message_may_come_in_any_pieces() -> None:
    peer = Peer()
    data = encode_message(5, Command.REGION_READ, RegionAccess(8, 0, 4))
    for i in range(len(data) - 1):
        peer.feed(data[i : i + 1])
        assert peer.connection.mid_message
        assert not peer.events
    peer.feed(data[-1:])
    assert peer.taken() == [events.ReadRegion(0, 8, 4)]
    assert not peer.connection.mid_message


def test_messages_in_one_piece_are_answered_in_order() -> None:
    peer = Peer()
    peer.feed(b"".join(encode_message(i, 9, RegionAccess(4 * i, 0, 4)) for i in range(100)))
    assert [e.offset for e in peer.taken()] == list(range(0, 400, 4))
    assert [Header.decode(data[:16]).id for data, _ in peer.connection.replies()] == [*range(100)]


def test_descriptors_belong_to_the_last_message_of_their_chunk() -> None:
    peer = Peer()
    ranges = [DmaMap(flags=1, address=i << 20, size=4096) for i in range(3)]
    first, second, third = (encode_message(i, Command.DMA_MAP, r) for i, r in enumerate(ranges))
    peer.feed(first + second + third, [7])
    assert [(e.address, e.fd) for e in peer.taken()] == [(2 << 20, 7)]


def test_descriptors_of_a_message_that_is_cut_wait_for_its_end() -> None:
    peer = Peer()
    first = encode_message(1, Command.DMA_MAP, DmaMap(flags=1, address=0, size=4096))
    second = encode_message(2, Command.DMA_MAP, DmaMap(flags=3, address=4096, size=4096))
    for cut in range(1, len(second)):
        peer = Peer()
        peer.feed(first + second[:cut], [7])
        assert not peer.taken()
        peer.feed(second[cut:] + encode_message(3, Command.DEVICE_RESET))
        assert [getattr(e, "fd", None) for e in peer.taken()] == [7, None]


def test_descriptors_that_nobody_wants_are_given_back() -> None:
    peer = Peer()
    with pytest.raises(PeerError, match="1 descriptors came along, at most 0"):
        peer.ask(Command.DEVICE_RESET, Empty(), [7])
    assert peer.connection.close() == [7]
    peer = Peer()
    with pytest.raises(PeerError, match="2 descriptors came along"):
        peer.ask(Command.DMA_MAP, DmaMap(flags=3, address=0, size=1), [7, 8])
    assert peer.connection.close() == [7, 8]
    assert peer.connection.close() == []
    peer = Peer()
    assert peer.map(0, 0, fds=[9]) == errno.EINVAL
    assert peer.taken() == [events.Discard((9,))]
    with pytest.raises(PeerError, match="at most 0 belong"):
        peer.ask(77, None, [4])
    assert peer.connection.close() == [4]


def test_descriptors_of_a_chunk_that_ends_the_session_are_given_back() -> None:
    peer = Peer()
    bad = encode_message(1, Command.DEVICE_RESET, Raw(b"x"))
    good = encode_message(2, Command.DMA_MAP, DmaMap(flags=3, address=0, size=4096))
    with pytest.raises(PeerError):
        peer.feed(bad + good, [7])
    assert peer.connection.close() == [7]


def test_nobody_waits_for_a_reply_that_was_not_asked_for() -> None:
    peer = Peer()
    posted = HeaderFlags.NO_REPLY
    assert peer.ask(Command.REGION_WRITE, RegionWrite(0, 0, 2, b"ab"), flags=posted) is None
    assert peer.taken() == [events.WriteRegion(0, 0, b"ab")]
    assert peer.ask(Command.REGION_WRITE, RegionWrite(0, 5, 2, b"ab"), flags=posted) is None
    assert peer.ask(77, flags=posted) is None
    assert not peer.taken()


# ---- memory --------------------------------------------------------------------------------------


def test_memory_comes_and_goes() -> None:
    peer = Peer()
    assert peer.map(0, 0x80000000) == 0
    assert peer.map(1 << 32, 4096, DmaFlags.READ) == 0
    assert [(e.address, e.size, e.writable, e.fd) for e in peer.taken()] == [
        (0, 0x80000000, True, 9),
        (1 << 32, 4096, False, 9),
    ]
    assert peer.unmap(1 << 32, 4096) == 0
    assert peer.taken() == [events.UnmapMemory(1 << 32, 4096)]
    assert peer.unmap(1 << 32, 4096) == errno.EINVAL
    assert peer.map(1 << 32, 8192) == 0


def test_overlap_nothing_and_wrapping_are_refused() -> None:  # E6
    peer = Peer()
    assert peer.map(0x10000, 0x10000) == 0
    for address, size in ((0x10000, 0x10000), (0x1FFFF, 1), (0, 0x10001), (0, U64), (0x18000, 16)):
        assert peer.map(address, size) == errno.EEXIST
    for address, size in ((0x40000, 0), (U64, 2), (1 << 63, 1 << 63 | 1)):
        assert peer.map(address, size) == errno.EINVAL
    offset = DmaMap(flags=RW, address=0x40000, size=0x1000, offset=U64 - 0xFFE)
    assert peer.ask(Command.DMA_MAP, offset, [9])[0] == errno.EINVAL
    assert [type(e) for e in peer.taken()] == [events.MapMemory] + [events.Discard] * 9
    assert peer.map(0x20000, 0x10000) == 0, "beside it there is room"


@pytest.mark.parametrize("flags", [0, 4, 7, 0x8000_0000])
def test_a_protection_that_does_not_exist_is_refused(flags) -> None:  # E5
    assert Peer().map(0, 4096, flags) == errno.EINVAL


def test_only_what_was_mapped_is_unmapped() -> None:
    peer = Peer()
    peer.map(0x10000, 0x10000)
    for address, size in ((0x10000, 0x1000), (0x11000, 0xF000), (0, U64), (0x10000, 0)):
        assert peer.unmap(address, size) == errno.EINVAL
    assert peer.unmap(0x10000, 0x10000, UnmapFlags.GET_DIRTY_BITMAP) == errno.EOPNOTSUPP  # E2
    assert peer.unmap(0, U64, UnmapFlags.ALL) == errno.EINVAL
    peer.taken()
    assert peer.unmap(0, 0, UnmapFlags.ALL) == 0
    assert peer.taken() == [events.UnmapMemory(0x10000, 0x10000)]


def test_a_range_that_cannot_be_mapped_is_refused_in_words(caplog) -> None:
    peer = Peer()
    peer.answers[events.MapMemory] = lambda event: "its file is too short"
    assert peer.map(0, 4096) == errno.EINVAL
    assert caplog.messages == ["vfio-user: DMA_MAP: refused: its file is too short"]
    assert peer.unmap(0, 4096) == errno.EINVAL


def test_a_guest_whose_memory_is_not_shared_finds_no_device(caplog) -> None:
    peer = Peer()
    assert peer.map(0xFFFC0000, 0x40000, DmaFlags.READ, ()) == 0
    assert peer.map(0, 0x80000000, fds=()) == errno.EINVAL
    assert "0x80000000 bytes at 0x0: " in caplog.messages[-1]
    assert "share=on -machine memory-backend=mem" in caplog.messages[-1]
    assert peer.ask(Command.DEVICE_GET_INFO, DeviceInfo()) == (errno.ENXIO, b"")
    assert peer.map(0, 0x80000000) == 0
    assert peer.ask(Command.DEVICE_GET_INFO, DeviceInfo())[0] == 0


def test_roms_and_devices_memory_come_without_descriptors() -> None:
    peer = Peer()
    assert peer.map(0xFFFC0000, 0x40000, DmaFlags.READ, ()) == 0
    assert peer.map(0, 0x80000000) == 0
    assert peer.map(0xFD000000, 0x1000000, RW, ()) == 0
    assert len(peer.taken()) == 1
    assert peer.map(0xFD000000, 16, RW, ()) == errno.EEXIST
    assert peer.unmap(0xFD000000, 0x1000000) == 0
    assert peer.taken() == []


def test_there_are_as_many_ranges_as_were_said() -> None:
    peer = Peer()
    for i in range(MAX_DMA_MAPS):
        assert peer.map(i << 12, 4096) == 0
    assert peer.map(MAX_DMA_MAPS << 12, 4096) == errno.ENOSPC
    assert peer.unmap(0, 4096) == 0
    assert peer.map(MAX_DMA_MAPS << 12, 4096) == 0


# ---- what the device has -------------------------------------------------------------------------


def test_the_device_is_described() -> None:
    peer = Peer()
    _, content = peer.ask(Command.DEVICE_GET_INFO, DeviceInfo())
    assert DeviceInfo.decode(content) == DeviceInfo(flags=3, num_regions=9, num_irqs=5)
    sizes, counts = [], []
    for index in range(9):
        _, content = peer.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(index=index))
        info = RegionInfo.decode(content)
        assert info.flags == (3 if info.size else 0)
        sizes.append(info.size)
    assert sizes == [0x20000, 0, 0, 0, 0, 0, 0, 256, 0]
    for index in range(5):
        _, content = peer.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=index))
        counts.append((IrqInfo.decode(content).count, IrqInfo.decode(content).flags))
    assert counts == [(1, 7), (4, 1), (20, 1), (1, 1), (0, 0)]
    assert peer.ask(Command.DEVICE_GET_REGION_INFO, RegionInfo(index=9))[0] == errno.EINVAL
    assert peer.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=U32))[0] == errno.EINVAL


@pytest.mark.parametrize("argsz", [0, 16, 31, 32, 79, 80, U32])
def test_any_room_for_the_reply_is_kept_to(argsz) -> None:  # E2
    areas = [Area(0x1000, 0x1000), Area(0x3000, 0x1000)]
    bar = Bar(index=2, size=0x4000, registers=REGISTERS, mappable=Mappable(fd=6, areas=areas))
    peer = Peer(bars=[bar], capabilities=[])
    peer.feed(encode_message(1, Command.DEVICE_GET_REGION_INFO, RegionInfo(index=2, argsz=argsz)))
    ((data, fds),) = peer.connection.replies()
    header, content = Header.decode(data[:16]), data[16:]
    if argsz < 32:
        assert (header.error, content, fds) == (errno.EINVAL, b"", ())
        return
    info = RegionInfo.decode(content)
    assert len(content) <= argsz
    assert info.argsz == 80
    assert info.areas == (((0x1000, 0x1000), (0x3000, 0x1000)) if argsz >= 80 else ())
    assert fds == ((6,) if argsz >= 80 else ())
    for command, payload in (
        (Command.DEVICE_GET_INFO, DeviceInfo(argsz=argsz)),
        (Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=0, argsz=argsz)),
    ):
        assert len(peer.ask(command, payload)[1]) == 16


# ---- interrupts ----------------------------------------------------------------------------------


def test_interrupts_are_set_masked_and_taken_away() -> None:
    peer = Peer()
    assert peer.irqs(EVENTFD | TRIGGER, Irq.INTX, 0, 1, [7]) == 0
    assert peer.irqs(EVENTFD | TRIGGER, Irq.MSIX, 3, 2, [8, 9]) == 0
    assert peer.irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 20) == 0
    assert peer.irqs(EVENTFD | TRIGGER, Irq.ERR, 0, 1, [5]) == 0
    assert peer.irqs(NONE | MASK, Irq.INTX, 0, 1) == 0
    assert peer.irqs(NONE | UNMASK, Irq.INTX, 0, 1) == 0
    assert peer.irqs(BOOL | UNMASK, Irq.INTX, 0, 1, data=b"\0") == 0
    assert peer.irqs(EVENTFD | UNMASK, Irq.INTX, 0, 1, [4]) == 0
    assert peer.irqs(NONE | TRIGGER, Irq.INTX, 0, 0) == 0
    assert peer.irqs(NONE | TRIGGER, Irq.REQ, 0, 0) == 0
    assert peer.irqs(BOOL | TRIGGER, Irq.MSIX, 2, 3, data=b"\1\0\1") == 0
    assert peer.taken() == [
        events.SetTriggers(0, 0, (7,)),
        events.SetTriggers(2, 3, (8, 9)),
        events.SetTriggers(2, 0, (None,) * 20),
        events.SetTriggers(3, 0, (5,)),
        events.MaskPin(True),
        events.MaskPin(False),
        events.SetUnmask(4),
        events.DisableIrqs(0),
        events.DisableIrqs(4),
        events.Trigger(2, 2),
        events.Trigger(2, 4),
    ]


@pytest.mark.parametrize(
    ("index", "start", "count"),
    [
        (Irq.INTX, 0, 2),
        (Irq.INTX, 1, 1),
        (Irq.INTX, U32, 1),
        (Irq.MSIX, U32, 2),
        (Irq.MSIX, 2, U32 - 1),
        (Irq.MSIX, 20, 1),
        (Irq.REQ, 0, 1),
        (5, 0, 0),
        (U32, U32, U32),
    ],
)
@pytest.mark.parametrize("flags", [NONE | TRIGGER, EVENTFD | TRIGGER, NONE | UNMASK])
def test_interrupts_that_do_not_exist_are_refused(index, start, count, flags) -> None:  # E3
    peer = Peer()
    assert peer.irqs(flags, index, start, count) == errno.EINVAL
    assert peer.taken() == []


@pytest.mark.parametrize(
    ("flags", "index", "count"),
    [
        (0, Irq.INTX, 1),
        (TRIGGER, Irq.INTX, 1),
        (NONE, Irq.INTX, 1),
        (NONE | EVENTFD | TRIGGER, Irq.INTX, 1),
        (NONE | TRIGGER | MASK, Irq.INTX, 1),
        (NONE | MASK, Irq.MSIX, 1),
        (NONE | UNMASK, Irq.INTX, 0),
        (EVENTFD | MASK, Irq.INTX, 1),
        (EVENTFD | TRIGGER, Irq.INTX, 0),
        (EVENTFD | UNMASK, Irq.MSIX, 1),
        (1 << 6 | NONE | TRIGGER, Irq.INTX, 1),
        (U32 & ~int(BOOL), Irq.INTX, 1),
    ],
)
def test_flags_that_say_nothing_clear_are_refused(flags, index, count) -> None:
    peer = Peer()
    fds = [4] if int(flags) & 0b111 == EVENTFD and count else []
    assert peer.irqs(flags, index, 0, count, fds) == errno.EINVAL
    assert [e for e in peer.taken() if not isinstance(e, events.Discard)] == []
    assert peer.connection.close() == []


def test_descriptors_that_are_too_few_end_the_session() -> None:
    peer = Peer()
    with pytest.raises(PeerError, match="1 descriptors came along, 2 or none"):
        peer.irqs(EVENTFD | TRIGGER, Irq.MSIX, 0, 2, [4])
    assert peer.connection.close() == [4]


# ---- accesses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("region", "offset", "count"),
    [
        (0, 0x20000, 1),
        (0, 0x1FFFF, 2),
        (0, U64, 1),
        (0, U64 - 3, 4),
        (0, U64, U32),
        (0, 0, 0),
        (0, 0, MAX_DATA + 1),
        (0, 0, U32),
        (1, 0, 4),
        (6, 0, 4),
        (7, 253, 4),
        (7, 256, 1),
        (8, 0, 1),
        (9, 0, 1),
        (U32, U64, U32),
    ],
)
def test_accesses_beyond_a_region_are_refused(region, offset, count) -> None:  # E1
    peer = Peer()
    assert peer.ask(Command.REGION_READ, RegionAccess(offset, region, count)) == (errno.EINVAL, b"")
    if count <= MAX_DATA:
        write = RegionWrite(offset, region, count, bytes(count))
        assert peer.ask(Command.REGION_WRITE, write) == (errno.EINVAL, b"")
    if count <= 8:
        writes = WriteMulti((RegionWrite(offset, region, count, bytes(count)),))
        assert peer.ask(Command.REGION_WRITE_MULTI, writes) == (errno.EINVAL, b"")
    assert peer.taken() == []


def test_reads_and_writes_are_answered_with_what_they_were() -> None:
    peer = Peer()
    peer.answers[events.ReadRegion] = lambda event: b"wxyz"
    assert peer.ask(Command.REGION_READ, RegionAccess(8, 0, 4)) == (
        0,
        RegionAccess(8, 0, 4, b"wxyz").encode(),
    )
    assert peer.ask(Command.REGION_WRITE, RegionWrite(4, 7, 2, b"ab")) == (
        0,
        RegionAccess(4, 7, 2).encode(),
    )
    writes = WriteMulti((RegionWrite(0, 0, 4, b"abcd"), RegionWrite(4, 0, 1, b"e")))
    assert peer.ask(Command.REGION_WRITE_MULTI, writes) == (0, (2).to_bytes(8, "little"))
    assert peer.taken()[2:] == [events.WriteRegion(0, 0, b"abcd"), events.WriteRegion(0, 4, b"e")]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Command.REGION_READ, Command.REGION_WRITE, Command.REGION_WRITE, 99]),
            st.sampled_from([0, 3, 0x1FFFE, 256, U64]),
            st.sampled_from([0, 1, 7, 8]),
            st.sampled_from([0, 1, 2, 4, 9, MAX_DATA + 1]),
            st.sampled_from([0, 0, 0x10]),
        ),
        max_size=6,
    ),
    st.integers(1, 100),
    st.booleans(),
)
def test_plain_accesses_are_answered_as_all_others_are(messages, step, with_fd) -> None:
    data = b"".join(
        encode_message(
            i,
            command,
            Raw(RegionAccess(offset, region, count).encode() + bytes(count * (command == 10))),
            HeaderFlags(flags),
        )
        for i, (command, offset, region, count, flags) in enumerate(messages)
    )
    outcomes = []
    for plain in (True, False):
        peer, error = Peer(), ""
        if not plain:
            peer.connection._plain_access = lambda *_: None  # type: ignore[method-assign]
        try:
            for at in range(0, len(data), step):
                peer.feed(data[at : at + step], [7] if with_fd and at == 0 else [])
        except PeerError as blamed:
            error = str(blamed)
        outcomes.append((peer.events, peer.connection.replies(), error, peer.connection.close()))
    assert outcomes[0] == outcomes[1]


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*FORMS, 16, 99]),
            st.binary(max_size=48),
            st.sampled_from([0, 0, 0, 0x10, 0x20, 1]),
            st.integers(-20, 20),
        ),
        max_size=12,
    ),
    st.integers(0, 3),
    st.integers(1, 60),
)
def test_any_bytes_are_taken_or_blamed_on_the_peer(messages, n_fds, step) -> None:  # E8
    peer = Peer()
    data = b"".join(
        Header.LAYOUT.pack(1, command, max(0, 16 + len(content) + lie * (lie % 4 == 0)), flags, 0)
        + content
        for command, content, flags, lie in messages
    )
    came = []
    try:
        for at in range(0, len(data), step):
            fds = [len(came) + i for i in range(n_fds)]
            came += fds
            peer.feed(data[at : at + step], fds)
    except PeerError:
        pass
    went = list(peer.connection.close())
    for event in peer.events:
        went += [fd for fd in getattr(event, "fds", ()) if fd is not None]
        went += [event.fd] if getattr(event, "fd", None) is not None else []
    assert sorted(went) == came, "every descriptor went to one place"
