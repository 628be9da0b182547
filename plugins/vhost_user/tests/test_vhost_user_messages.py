from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.errors import PeerError
from vnic_vhost_user.connection import OFFERED
from vnic_vhost_user.messages import (
    FORMS,
    NO_FEATURES,
    NO_FLAGS,
    Header,
    HeaderFlags,
    ProtocolFeatures,
    Request,
    check_header,
    decode_payload,
    encode_message,
)
from vnic_vhost_user.payloads import (
    MAX_CONFIG,
    MAX_TABLE_REGIONS,
    U64,
    ConfigSpace,
    Empty,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
)

ALL = OFFERED | ProtocolFeatures.CONFIG
REGION = MemoryRegion(
    guest_addr=0x1122334455667788, size=0x99AABBCC, user_addr=0x7F0000001000, mmap_offset=0x2000
)
REGION_FIELDS = [
    (0, 8, 0x1122334455667788),
    (8, 8, 0x99AABBCC),
    (16, 8, 0x7F0000001000),
    (24, 8, 0x2000),
]

LAYOUTS = [
    (
        Header(request=5, flags=HeaderFlags.NEED_REPLY, size=72),
        12,
        [(0, 4, 5), (4, 4, 9), (8, 4, 72)],
    ),
    (Header(request=1, flags=HeaderFlags.REPLY, size=8), 12, [(0, 4, 1), (4, 4, 5), (8, 4, 8)]),
    (Empty(), 0, []),
    (U64(0x0102030405060708), 8, [(0, 8, 0x0102030405060708)]),
    (VringState(index=3, num=256), 8, [(0, 4, 3), (4, 4, 256)]),
    (VringDescriptor(index=255, nofd=True), 8, [(0, 8, 0x1FF)]),
    (VringDescriptor(index=1), 8, [(0, 8, 1)]),
    (
        VringAddress(
            index=1,
            flags=2,
            desc_user_addr=0x10,
            used_user_addr=0x20,
            avail_user_addr=0x30,
            log_guest_addr=0x40,
        ),
        40,
        [(0, 4, 1), (4, 4, 2), (8, 8, 0x10), (16, 8, 0x20), (24, 8, 0x30), (32, 8, 0x40)],
    ),
    (REGION, 32, REGION_FIELDS),
    (MemoryTable(regions=()), 8, [(0, 4, 0), (4, 4, 0)]),
    (
        MemoryTable(regions=(REGION, REGION)),
        72,
        [(0, 4, 2), (4, 4, 0)]
        + [(8 + at, n, value) for at, n, value in REGION_FIELDS]
        + [(40 + at, n, value) for at, n, value in REGION_FIELDS],
    ),
    (
        SingleRegion(region=REGION),
        40,
        [(0, 8, 0)] + [(8 + at, n, value) for at, n, value in REGION_FIELDS],
    ),
    (
        ConfigSpace(offset=6, flags=1, data=b"\xaa\xbb"),
        14,
        [(0, 4, 6), (4, 4, 2), (8, 4, 1), (12, 1, 0xAA), (13, 1, 0xBB)],
    ),
]


@pytest.mark.parametrize(
    ("message", "size", "fields"), LAYOUTS, ids=[str(row[0])[:40] for row in LAYOUTS]
)
def test_every_field_lies_where_the_specification_has_it(message, size, fields) -> None:
    data = message.encode()
    assert len(data) == size
    for offset, n, value in fields:
        assert int.from_bytes(data[offset : offset + n], "little") == value
    assert sum(n for _, n, _ in fields) == size
    assert type(message).decode(data) == message


def test_each_request_has_the_number_of_the_specification() -> None:
    assert [request.value for request in Request] == list(range(1, 45))
    assert Request.SET_VRING_KICK == 12
    assert Request.RESET_DEVICE == 34
    assert Request.GET_STATUS == 40


SIZES = {
    Request.GET_FEATURES: (0, 0),
    Request.SET_FEATURES: (8, 8),
    Request.SET_OWNER: (0, 0),
    Request.RESET_OWNER: (0, 0),
    Request.SET_MEM_TABLE: (8, 264),
    Request.SET_VRING_NUM: (8, 8),
    Request.SET_VRING_ADDR: (40, 40),
    Request.SET_VRING_BASE: (8, 8),
    Request.GET_VRING_BASE: (8, 8),
    Request.SET_VRING_KICK: (8, 8),
    Request.SET_VRING_CALL: (8, 8),
    Request.SET_VRING_ERR: (8, 8),
    Request.GET_PROTOCOL_FEATURES: (0, 0),
    Request.SET_PROTOCOL_FEATURES: (8, 8),
    Request.GET_QUEUE_NUM: (0, 0),
    Request.SET_VRING_ENABLE: (8, 8),
    Request.NET_SET_MTU: (8, 8),
    Request.GET_CONFIG: (12, 268),
    Request.SET_CONFIG: (12, 268),
    Request.RESET_DEVICE: (0, 0),
    Request.GET_MAX_MEM_SLOTS: (0, 0),
    Request.ADD_MEM_REG: (40, 40),
    Request.REM_MEM_REG: (40, 40),
    Request.SET_STATUS: (8, 8),
    Request.GET_STATUS: (0, 0),
}


def test_the_sizes_are_told_for_each_request_that_is_served() -> None:
    assert set(SIZES) == set(FORMS)


@pytest.mark.parametrize("request_", SIZES, ids=lambda r: r.name)
def test_a_size_outside_its_range_is_refused_before_the_payload_is_read(request_) -> None:
    least, most = SIZES[request_]
    for size in (least, most):
        check_header(Header(request=request_, size=size), ALL)
    for size in {least - 1, most + 1, 1 << 20, 0xFFFFFFFF} - {-1}:
        with pytest.raises(PeerError, match=f"^{request_.name}: payload is {size} bytes, needs"):
            check_header(Header(request=request_, size=size), ALL)


@pytest.mark.parametrize("number", [0, 6, 7, 19, 21, 22, 31, 32, 35, 42, 45, 0xFFFFFFFF])
def test_a_request_that_is_not_served_is_refused_by_name_or_number(number: int) -> None:
    name = Request(number).name if 0 < number < 45 else f"request {number}"
    with pytest.raises(PeerError, match=f"^{name}: is not served"):
        check_header(Header(request=number, size=8), ALL)


@pytest.mark.parametrize("request_", [r for r, form in FORMS.items() if form.needs])
def test_a_request_of_a_feature_that_was_not_offered_is_refused(request_: int) -> None:
    with pytest.raises(PeerError, match="is not served"):
        check_header(Header(request=request_, size=SIZES[Request(request_)][0]), NO_FEATURES)


@pytest.mark.parametrize("flags", [0, 2, 3, 0x11, 0x80000001])
def test_another_version_or_unknown_flags_are_refused(flags: int) -> None:
    data = Header.LAYOUT.pack(Request.GET_FEATURES, flags, 0)
    with pytest.raises(PeerError, match=rf"^GET_FEATURES: flags are {flags:#x}; this is version 1"):
        Header.decode(data)


def test_a_reply_that_nobody_asked_for_is_refused() -> None:
    header = Header.decode(Header.LAYOUT.pack(Request.SET_STATUS, 5, 8))
    with pytest.raises(PeerError, match="SET_STATUS: is marked as a reply"):
        check_header(header, ALL)


def refused(request: Request, payload: bytes, n_fds: int = 0) -> str:
    with pytest.raises(PeerError) as caught:
        decode_payload(request, FORMS[request], payload, n_fds)
    return str(caught.value)


def test_a_memory_table_cut_short_is_refused_with_what_it_needs() -> None:
    data = MemoryTable(regions=(REGION, REGION)).encode()[:40]
    assert refused(Request.SET_MEM_TABLE, data, 2) == (
        "SET_MEM_TABLE: payload is 40 bytes, its 2 regions need 72"
    )


def test_a_memory_table_of_nine_regions_is_refused() -> None:
    data = MemoryTable.LAYOUT.pack(MAX_TABLE_REGIONS + 1, 0)
    assert refused(Request.SET_MEM_TABLE, data) == (
        "SET_MEM_TABLE: 9 regions, at most 8 are possible"
    )
    assert "4294967295 regions" in refused(Request.SET_MEM_TABLE, b"\xff" * 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 0},
        {"guest_addr": 2**64 - 0x1000, "size": 0x1001},
        {"user_addr": 2**64 - 0x1000, "size": 0x1001},
        {"mmap_offset": 2**64 - 1, "size": 2},
        {"guest_addr": 2**64 - 1, "size": 2**64 - 1},
    ],
)
def test_a_region_that_is_empty_or_wraps_is_refused(changes) -> None:  # D3
    region = attrs.evolve(REGION, **changes)
    assert "is empty, or wraps" in refused(
        Request.ADD_MEM_REG, SingleRegion(region=region).encode(), 1
    )


@pytest.mark.parametrize("index", [0x200, 0x10000, 0xFFFFFFFF, 2**64 - 1])
def test_an_index_beyond_eight_bits_is_not_cut_to_another_queue(index: int) -> None:  # D4
    for request in (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR):
        text = refused(request, U64(index).encode())
        assert text == f"{request.name}: {index:#x} has bits beyond the queue (0-7) and NOFD (8)"


def test_config_bytes_must_fill_the_payload_and_lie_in_the_space() -> None:
    short = ConfigSpace.LAYOUT.pack(0, 9, 0) + bytes(8)
    assert "payload is 20 bytes, its size field of 9 needs 21" in refused(Request.GET_CONFIG, short)
    far = ConfigSpace(offset=MAX_CONFIG - 1, data=bytes(2)).encode()
    assert "2 bytes at 0xff end beyond 0x100" in refused(Request.SET_CONFIG, far)


FDS = [
    (Request.GET_FEATURES, Empty(), {0}),
    (Request.SET_MEM_TABLE, MemoryTable(regions=()), {0}),
    (Request.SET_MEM_TABLE, MemoryTable(regions=(REGION,) * 8), {8}),
    (Request.SET_VRING_KICK, VringDescriptor(index=0), {1}),
    (Request.SET_VRING_KICK, VringDescriptor(index=0, nofd=True), {0}),
    (Request.SET_VRING_CALL, VringDescriptor(index=0), {1}),
    (Request.SET_VRING_CALL, VringDescriptor(index=0, nofd=True), {0}),
    (Request.SET_VRING_ERR, VringDescriptor(index=0), {1}),
    (Request.ADD_MEM_REG, SingleRegion(region=REGION), {1}),
    (Request.REM_MEM_REG, SingleRegion(region=REGION), {0, 1}),
    (Request.SET_FEATURES, U64(0), {0}),
]


@pytest.mark.parametrize(("request_", "payload", "allowed"), FDS)
def test_each_message_carries_as_many_descriptors_as_belong_to_it(  # D1
    request_, payload, allowed
) -> None:
    for n in (*range(10), 253):
        if n in allowed:
            decode_payload(request_, FORMS[request_], payload.encode(), n)
        else:
            text = refused(request_, payload.encode(), n)
            counts = " or ".join(map(str, sorted(allowed)))
            assert text == (f"{request_.name}: {n} descriptors came along, {counts} belong to it")


# ---- any bytes -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=12, max_size=12))
def test_any_header_decodes_or_blames_the_peer(data: bytes) -> None:
    try:
        header = Header.decode(data)
        check_header(header, ALL)
    except PeerError:
        return
    assert header.encode() == data


@settings(deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.binary(max_size=300), st.integers(0, 253))
def test_any_bytes_decode_or_blame_the_peer(request: int, data: bytes, n_fds: int) -> None:
    form = FORMS[request]
    least, most = form.payload.SIZES
    data = data[:most].ljust(least, b"\0")
    try:
        payload = decode_payload(request, form, data, n_fds)
    except PeerError as error:
        blame = str(error)
    else:
        blame = f"{Request(request).name}: none"
        assert form.payload.decode(payload.encode()) == payload
    assert blame.startswith(Request(request).name + ": ")


u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
regions = st.builds(
    MemoryRegion,
    guest_addr=st.integers(0, 2**63),
    size=st.integers(1, 2**63),
    user_addr=st.integers(0, 2**63),
    mmap_offset=st.integers(0, 2**63),
)
messages = st.one_of(
    st.builds(U64, u64),
    st.builds(VringState, index=u32, num=u32),
    st.builds(VringDescriptor, index=st.integers(0, 255), nofd=st.booleans()),
    st.builds(
        VringAddress,
        index=u32,
        flags=u32,
        desc_user_addr=u64,
        used_user_addr=u64,
        avail_user_addr=u64,
        log_guest_addr=u64,
    ),
    regions,
    st.builds(MemoryTable, regions=st.lists(regions, max_size=8).map(tuple)),
    st.builds(SingleRegion, region=regions),
    st.builds(ConfigSpace, offset=st.integers(0, 128), flags=u32, data=st.binary(max_size=128)),
)


@settings(deadline=None)
@given(messages)
def test_what_is_encoded_decodes_to_the_same(message) -> None:
    data = message.encode()
    assert type(message).decode(data) == message
    framed = encode_message(Request.SET_OWNER, message, NO_FLAGS)
    assert Header.decode(framed[:12]).size == len(data)
    assert framed[12:] == data
