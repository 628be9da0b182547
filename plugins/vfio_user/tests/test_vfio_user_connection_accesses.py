"""Messages that read and write registers, in short and the long way."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.vfio_user import U32, U64, Script
from vnic.errors import PeerError
from vnic_vfio_user import events
from vnic_vfio_user.messages import Command, HeaderFlags, encode_message
from vnic_vfio_user.payloads import MAX_DATA, Raw, RegionAccess, RegionWrite, WriteMulti


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
    vmm = Script()
    assert vmm.ask(Command.REGION_READ, RegionAccess(offset, region, count)) == (errno.EINVAL, b"")
    if count <= MAX_DATA:
        write = RegionWrite(offset, region, count, bytes(count))
        assert vmm.ask(Command.REGION_WRITE, write) == (errno.EINVAL, b"")
    if count <= 8:
        writes = WriteMulti((RegionWrite(offset, region, count, bytes(count)),))
        assert vmm.ask(Command.REGION_WRITE_MULTI, writes) == (errno.EINVAL, b"")
    assert vmm.taken() == []


def test_reads_and_writes_are_answered_with_what_they_were() -> None:
    vmm = Script()
    vmm.answers[events.ReadRegion] = lambda event: b"wxyz"
    assert vmm.ask(Command.REGION_READ, RegionAccess(8, 0, 4)) == (
        0,
        RegionAccess(8, 0, 4, b"wxyz").encode(),
    )
    assert vmm.ask(Command.REGION_WRITE, RegionWrite(4, 7, 2, b"ab")) == (
        0,
        RegionAccess(4, 7, 2).encode(),
    )
    writes = WriteMulti((RegionWrite(0, 0, 4, b"abcd"), RegionWrite(4, 0, 1, b"e")))
    assert vmm.ask(Command.REGION_WRITE_MULTI, writes) == (0, (2).to_bytes(8, "little"))
    assert vmm.taken()[2:] == [events.WriteRegion(0, 0, b"abcd"), events.WriteRegion(0, 4, b"e")]


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
        vmm, error = Script(), ""
        if not plain:
            vmm.connection._plain_access = lambda *_: None  # type: ignore[method-assign]
        try:
            for at in range(0, len(data), step):
                vmm.feed(data[at : at + step], [7] if with_fd and at == 0 else [])
        except PeerError as blamed:
            error = str(blamed)
        outcomes.append((vmm.events, vmm.connection.replies(), error, vmm.connection.close()))
    assert outcomes[0] == outcomes[1]
