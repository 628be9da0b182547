"""Messages in, events and replies out: versions, pieces, descriptors, any bytes."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.vfio_user import Script
from vnic.errors import PeerError
from vnic_vfio_user import events
from vnic_vfio_user.connection import REFUSALS_LOGGED
from vnic_vfio_user.device_payloads import DeviceInfo, IrqInfo, IrqSet, RegionInfo
from vnic_vfio_user.messages import FORMS, Command, Header, HeaderFlags, encode_message
from vnic_vfio_user.payloads import (
    DmaMap,
    DmaUnmap,
    Empty,
    Raw,
    RegionAccess,
    RegionWrite,
    Version,
    WriteMulti,
)

# ---- version -------------------------------------------------------------------------------------


def test_capabilities_are_answered_in_no_more_bytes_than_they_came_in() -> None:
    vmm = Script(start=False)
    request = Version(
        minor=1, capabilities={"max_msg_fds": 8, "write_multiple": True, "x": "y" * 99}
    )
    _, content = vmm.ask(Command.VERSION, request)
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
        _, content = Script(start=False).ask(Command.VERSION, request)
        assert len(content) <= len(request.encode())
        assert "write_multiple" not in (Version.decode(content).capabilities or {})


def test_no_capabilities_are_answered_with_none() -> None:
    assert Script(start=False).ask(Command.VERSION, Version()) == (0, bytes(4))


def test_another_major_version_ends_the_session() -> None:
    with pytest.raises(PeerError, match=r"VERSION: 1\.0; 0\.0 is served"):
        Script(start=False).ask(Command.VERSION, Version(major=1))


def test_version_comes_first_and_once() -> None:
    for command in set(FORMS) - {Command.VERSION}:
        vmm = Script(start=False)
        with pytest.raises(PeerError, match="the session is new"):
            vmm.ask(command, _any_payload(command))
    with pytest.raises(PeerError, match="the session is ready"):
        Script().ask(Command.VERSION, Version())


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
    vmm = Script()
    assert vmm.ask(command, Raw(bytes(33))) == (errno.EOPNOTSUPP, b"")
    assert vmm.ask(Command.DEVICE_RESET, Empty()) == (0, b"")
    assert "is not served" in caplog.text


def test_refusals_fill_no_disk(caplog) -> None:
    vmm = Script()
    for _ in range(1000):
        vmm.ask(77)
    assert len(caplog.records) == REFUSALS_LOGGED
    assert caplog.messages[-1].endswith("; more of these are not logged")


# ---- the stream ----------------------------------------------------------------------------------


def test_a_message_may_come_in_any_pieces() -> None:
    vmm = Script()
    data = encode_message(5, Command.REGION_READ, RegionAccess(8, 0, 4))
    for i in range(len(data) - 1):
        vmm.feed(data[i : i + 1])
        assert vmm.connection.mid_message
        assert not vmm.events
    vmm.feed(data[-1:])
    assert vmm.taken() == [events.ReadRegion(0, 8, 4)]
    assert not vmm.connection.mid_message


def test_messages_in_one_piece_are_answered_in_order() -> None:
    vmm = Script()
    vmm.feed(b"".join(encode_message(i, 9, RegionAccess(4 * i, 0, 4)) for i in range(100)))
    assert [e.offset for e in vmm.taken()] == list(range(0, 400, 4))
    assert [Header.decode(data[:16]).id for data, _ in vmm.connection.replies()] == [*range(100)]


def test_descriptors_belong_to_the_last_message_of_their_chunk() -> None:
    vmm = Script()
    ranges = [DmaMap(flags=1, address=i << 20, size=4096) for i in range(3)]
    first, second, third = (encode_message(i, Command.DMA_MAP, r) for i, r in enumerate(ranges))
    vmm.feed(first + second + third, [7])
    assert [(e.address, e.fd) for e in vmm.taken()] == [(2 << 20, 7)]


def test_descriptors_of_a_message_that_is_cut_wait_for_its_end() -> None:
    vmm = Script()
    first = encode_message(1, Command.DMA_MAP, DmaMap(flags=1, address=0, size=4096))
    second = encode_message(2, Command.DMA_MAP, DmaMap(flags=3, address=4096, size=4096))
    for cut in range(1, len(second)):
        vmm = Script()
        vmm.feed(first + second[:cut], [7])
        assert not vmm.taken()
        vmm.feed(second[cut:] + encode_message(3, Command.DEVICE_RESET))
        assert [getattr(e, "fd", None) for e in vmm.taken()] == [7, None]


def test_descriptors_that_nobody_wants_are_given_back() -> None:
    vmm = Script()
    with pytest.raises(PeerError, match="1 descriptors came along, at most 0"):
        vmm.ask(Command.DEVICE_RESET, Empty(), [7])
    assert vmm.connection.close() == [7]
    vmm = Script()
    with pytest.raises(PeerError, match="2 descriptors came along"):
        vmm.ask(Command.DMA_MAP, DmaMap(flags=3, address=0, size=1), [7, 8])
    assert vmm.connection.close() == [7, 8]
    assert vmm.connection.close() == []
    vmm = Script()
    assert vmm.map(0, 0, fds=[9]) == errno.EINVAL
    assert vmm.taken() == [events.Discard((9,))]
    with pytest.raises(PeerError, match="at most 0 belong"):
        vmm.ask(77, None, [4])
    assert vmm.connection.close() == [4]


def test_descriptors_of_a_chunk_that_ends_the_session_are_given_back() -> None:
    vmm = Script()
    bad = encode_message(1, Command.DEVICE_RESET, Raw(b"x"))
    good = encode_message(2, Command.DMA_MAP, DmaMap(flags=3, address=0, size=4096))
    with pytest.raises(PeerError):
        vmm.feed(bad + good, [7])
    assert vmm.connection.close() == [7]


def test_nobody_waits_for_a_reply_that_was_not_asked_for() -> None:
    vmm = Script()
    posted = HeaderFlags.NO_REPLY
    assert vmm.ask(Command.REGION_WRITE, RegionWrite(0, 0, 2, b"ab"), flags=posted) is None
    assert vmm.taken() == [events.WriteRegion(0, 0, b"ab")]
    assert vmm.ask(Command.REGION_WRITE, RegionWrite(0, 5, 2, b"ab"), flags=posted) is None
    assert vmm.ask(77, flags=posted) is None
    assert not vmm.taken()


# ---- any bytes -----------------------------------------------------------------------------------


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
    vmm = Script()
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
            vmm.feed(data[at : at + step], fds)
    except PeerError:
        pass
    went = list(vmm.connection.close())
    for event in vmm.events:
        went += [fd for fd in getattr(event, "fds", ()) if fd is not None]
        went += [event.fd] if getattr(event, "fd", None) is not None else []
    assert sorted(went) == came, "every descriptor went to one place"
