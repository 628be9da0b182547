from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vnic.errors import PeerError
from vnic_vfio_user.device_payloads import DeviceInfo, IrqInfo, IrqSet, IrqSetFlags, RegionInfo
from vnic_vfio_user.messages import (
    FORMS,
    MAX_FDS,
    UNSERVED,
    Command,
    Header,
    HeaderFlags,
    check_header,
    command_name,
    decode_payload,
    encode_message,
)
from vnic_vfio_user.payloads import (
    MAX_DATA,
    DmaMap,
    DmaUnmap,
    Raw,
    RegionAccess,
    RegionWrite,
    Version,
    WriteMulti,
)

U64 = (1 << 64) - 1

LAYOUTS = [  # (class, size, {field: (offset, size)})
    (
        Header,
        16,
        {"id": (0, 2), "command": (2, 2), "size": (4, 4), "flags": (8, 4), "error": (12, 4)},
    ),
    (
        DmaMap,
        32,
        {"argsz": (0, 4), "flags": (4, 4), "offset": (8, 8), "address": (16, 8), "size": (24, 8)},
    ),
    (DmaUnmap, 24, {"argsz": (0, 4), "flags": (4, 4), "address": (8, 8), "size": (16, 8)}),
    (
        DeviceInfo,
        16,
        {"argsz": (0, 4), "flags": (4, 4), "num_regions": (8, 4), "num_irqs": (12, 4)},
    ),
    (
        RegionInfo,
        32,
        {
            "argsz": (0, 4),
            "flags": (4, 4),
            "index": (8, 4),
            "cap_offset": (12, 4),
            "size": (16, 8),
            "offset": (24, 8),
        },
    ),
    (IrqInfo, 16, {"argsz": (0, 4), "flags": (4, 4), "index": (8, 4), "count": (12, 4)}),
    (
        IrqSet,
        20,
        {"argsz": (0, 4), "flags": (4, 4), "index": (8, 4), "start": (12, 4), "count": (16, 4)},
    ),
    (RegionAccess, 16, {"offset": (0, 8), "region": (8, 4), "count": (12, 4)}),
]


@pytest.mark.parametrize(
    ("cls", "size", "fields"), LAYOUTS, ids=lambda x: getattr(x, "__name__", "")
)
def test_every_size_and_offset_is_the_specifications(cls, size, fields) -> None:
    assert cls.LAYOUT.size == size
    assert sum(n for _, n in fields.values()) == size
    flags = {"flags": int(HeaderFlags.REPLY)} if cls is Header else {}
    for name, (offset, n) in fields.items():
        value = flags.get(name, int.from_bytes(bytes(range(1, n + 1)), "little"))
        required = {f.name: 0 for f in attrs.fields(cls) if f.default is attrs.NOTHING}
        message = cls(
            **{**required, "argsz": 0, name: value}
            if "argsz" in fields
            else {**required, name: value}
        )
        data = message.encode()
        assert data[offset : offset + n] == value.to_bytes(n, "little"), name
        assert not any(data[:offset] + data[offset + n :]), name


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.VERSION, Version(capabilities={"max_msg_fds": 8})),
        (Command.VERSION, Version(minor=1)),
        (Command.DMA_MAP, DmaMap(flags=3, address=1 << 40, size=4096, offset=4096)),
        (Command.DMA_UNMAP, DmaUnmap(address=1 << 40, size=4096)),
        (Command.DEVICE_GET_INFO, DeviceInfo()),
        (Command.DEVICE_GET_REGION_INFO, RegionInfo(index=7)),
        (Command.DEVICE_GET_IRQ_INFO, IrqInfo(index=2)),
        (Command.DEVICE_SET_IRQS, IrqSet(flags=0x24, index=0, count=1)),
        (Command.DEVICE_SET_IRQS, IrqSet(flags=0x22, index=2, count=3, data=b"\1\0\1")),
        (Command.REGION_READ, RegionAccess(0x3818, 0, 4)),
        (Command.REGION_WRITE, RegionWrite(0x3818, 0, 4, b"abcd")),
        (
            Command.REGION_WRITE_MULTI,
            WriteMulti((RegionWrite(0, 0, 1, b"a"), RegionWrite(8, 2, 8, b"01234567"))),
        ),
    ],
)
def test_what_is_encoded_decodes_to_the_same(command, payload) -> None:
    data = encode_message(7, command, payload)
    header = Header.decode(data[:16])
    assert (header.id, header.command, header.size) == (7, command, len(data))
    form = check_header(header)
    assert decode_payload(command, form, data[16:], 0) == payload


def test_areas_that_can_be_mapped_follow_a_region() -> None:
    info = RegionInfo(index=2, argsz=80, cap_offset=32, areas=((0x1000, 0x1000), (0x3000, 0x2000)))
    data = info.encode()
    assert len(data) == 32 + 16 + 2 * 16
    assert RegionInfo.decode(data) == info
    assert data[32:48] == bytes.fromhex("0100 0100 00000000 02000000 00000000")


@pytest.mark.parametrize(
    ("command", "data", "n_fds", "text"),
    [
        (Command.DMA_MAP, bytes(31), 1, "DMA_MAP: payload is 31 bytes, needs 32"),
        (
            Command.DMA_MAP,
            bytes(32),
            2,
            "DMA_MAP: 2 descriptors came along, at most 1 belong to it",
        ),
        (Command.REGION_READ, bytes(17), 0, "REGION_READ: payload is 17 bytes, needs 16"),
        (Command.REGION_READ, bytes(16), 1, "REGION_READ: 1 descriptors came along, at most 0 "),
        (
            Command.REGION_WRITE,
            RegionAccess(0, 0, 5).encode() + b"abcd",
            0,
            "REGION_WRITE: 4 bytes of data, its count says 5",
        ),
        (
            Command.REGION_WRITE,
            RegionAccess(0, 0, 0xFFFF_FFF4).encode() + b"abcd",
            0,
            "REGION_WRITE: 4 bytes of data, its count says 4294967284",
        ),
        (
            Command.REGION_WRITE,
            bytes(16 + MAX_DATA + 1),
            0,
            f"REGION_WRITE: payload is {MAX_DATA + 17} bytes, needs 16 to {MAX_DATA + 16}",
        ),
        (
            Command.REGION_WRITE_MULTI,
            U64.to_bytes(8, "little") + bytes(24),
            0,
            "REGION_WRITE_MULTI: 24 bytes of writes, ",
        ),
        (
            Command.REGION_WRITE_MULTI,
            (1).to_bytes(8, "little") + WriteMulti.WRITE.pack(0, 0, 9, b""),
            0,
            "REGION_WRITE_MULTI: a write of 9 bytes, at most 8 have room",
        ),
        (
            Command.DEVICE_SET_IRQS,
            IrqSet(flags=IrqSetFlags.DATA_BOOL, index=0, count=0xFFFF_FFFF).encode(),
            0,
            "DEVICE_SET_IRQS: 0 bytes of data, needs 4294967295",
        ),
        (
            Command.DEVICE_SET_IRQS,
            bytes(20),
            MAX_FDS + 1,
            "DEVICE_SET_IRQS: 17 descriptors came along, at most 16 belong to it",
        ),
        (Command.DEVICE_RESET, b"x", 0, "DEVICE_RESET: payload is 1 bytes, needs 0"),
        (Command.VERSION, b"\0\0\0\0{}", 0, "VERSION: its JSON does not end with the message's "),
        (Command.VERSION, b"\0\0\0\0{}\0\0", 0, "VERSION: its JSON does not end with the "),
        (Command.VERSION, b"\0\0\0\0[]\0", 0, "VERSION: its JSON is no object with an object "),
        (Command.VERSION, b'\0\0\0\0{"capabilities":1}\0', 0, "VERSION: its JSON is no object "),
        (Command.VERSION, b"\0\0\0\0{\0", 0, "VERSION: its capabilities are no JSON: "),
        (Command.VERSION, b"\0\0\0\0\xff\xfe\0", 0, "VERSION: its capabilities are no JSON: "),
        (Command.VERSION, b"\0\0\0\0" + 4000 * b"[" + b"\0", 0, "VERSION: its capabilities are "),
    ],
)
def test_what_cannot_be_is_blamed_on_the_peer(command, data, n_fds, text) -> None:
    header = Header(id=0, command=command, size=16 + len(data))
    with pytest.raises(PeerError) as error:
        decode_payload(command, check_header(header), data, n_fds)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (
            Header(id=1, command=9, size=15),
            "REGION_READ: size is 15 bytes, its header alone has 16",
        ),
        (Header(id=1, command=9, size=0), "REGION_READ: size is 0 bytes"),
        (
            Header(id=1, command=11, size=16, flags=HeaderFlags.REPLY),
            "DMA_READ: is marked as a reply, and nothing was asked",
        ),
        (
            Header(id=1, command=11, size=16, flags=HeaderFlags.ERROR | 1, error=0x8000_0000),  # E4
            "DMA_READ: is marked as a reply, and nothing was asked",
        ),
        (Header(id=1, command=99, size=(1 << 32) - 1), "command 99: payload is 4294967279 bytes"),
        (Header(id=1, command=9, size=32, flags=0x40), "REGION_READ: there are no flags 0x40"),
        (Header(id=1, command=9, size=32, flags=0x2), "REGION_READ: there are no flags 0x2"),
    ],
)
def test_a_header_that_cannot_be_is_blamed_before_its_payload_is_read(header, text) -> None:
    data = Header.LAYOUT.pack(header.id, header.command, header.size, header.flags, header.error)
    with pytest.raises(PeerError) as error:
        check_header(Header.decode(data))
    assert str(error.value).startswith(text)


def test_a_command_that_nobody_serves_may_carry_anything() -> None:
    for number in (Command.DEVICE_FEATURE, Command.DMA_READ, 99, 65535):
        header = Header(id=0, command=number, size=16 + 100)
        assert check_header(header) is UNSERVED
        assert decode_payload(number, UNSERVED, bytes(100), 0) == Raw(bytes(100))


def test_every_command_has_a_name() -> None:
    assert command_name(2) == "DMA_MAP"
    assert command_name(99) == "command 99"
    assert set(FORMS) <= set(Command)


@given(st.binary(min_size=16, max_size=16))
def test_any_header_decodes_or_blames_the_peer(data: bytes) -> None:
    try:
        header = Header.decode(data)
        assert header.encode() == data
        check_header(header)
    except PeerError:
        pass


@given(st.sampled_from([*FORMS, 99]), st.binary(max_size=200), st.integers(0, 20))
def test_any_bytes_decode_or_blame_the_peer(command: int, data: bytes, n_fds: int) -> None:
    header, blamed = Header(id=0, command=command, size=16 + len(data)), ""
    try:
        payload = decode_payload(command, check_header(header), data, n_fds)
    except PeerError as error:
        blamed = str(error)
    assert not blamed or blamed.startswith(command_name(command))
    if not blamed and command != Command.VERSION:
        assert payload.encode()[:16] == data[:16]
