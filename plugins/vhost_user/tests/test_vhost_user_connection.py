"""Messages in, events and replies out: framing, negotiation, any messages in any order."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.vhost_user import FEATURES, REGION, SECOND, Script, address, refused
from vnic.errors import PeerError
from vnic_vhost_user import events
from vnic_vhost_user.connection import MAX_MEM_SLOTS, NEEDS_RESET, OFFERED
from vnic_vhost_user.messages import (
    F_PROTOCOL_FEATURES,
    FORMS,
    NO_FLAGS,
    HeaderFlags,
    ProtocolFeatures,
    Request,
    encode_message,
)
from vnic_vhost_user.payloads import (
    U64,
    ConfigSpace,
    MemoryTable,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
)

# ---- framing and replies -------------------------------------------------------------------------


def test_a_message_is_taken_byte_by_byte(script: Script) -> None:
    data = encode_message(Request.SET_STATUS, U64(1), NO_FLAGS)
    for n in range(len(data)):
        assert script.connection.mid_message == bool(n)
        assert script.connection.wants == (12 - n if n < 12 else 20 - n)
        script.run(script.connection.receive(data[n : n + 1]))
    assert not script.connection.mid_message
    assert script.connection.status == 1


def test_more_bytes_than_were_wanted_are_the_callers_mistake(script: Script) -> None:
    with pytest.raises(ValueError, match="13 bytes, 12 were wanted"):
        script.connection.receive(bytes(13))


def test_descriptors_that_come_with_any_byte_of_a_message_are_the_messages(ready: Script) -> None:
    data = encode_message(Request.SET_VRING_CALL, VringDescriptor(index=1), NO_FLAGS)
    assert ready.bytes_(data[:12]) == []
    assert ready.bytes_(data[12:16], (7,)) == []
    assert ready.bytes_(data[16:]) == [events.SetCall(1, 7, False)]


def test_descriptors_of_a_message_that_is_refused_stay_to_be_closed(ready: Script) -> None:  # D1
    assert "2 descriptors" in refused(
        ready.tell, Request.SET_VRING_KICK, VringDescriptor(index=0), 2
    )
    assert len(ready.connection.close()) == 2
    assert ready.connection.close() == []


def test_nothing_is_acknowledged_unless_reply_ack_was_negotiated(script: Script) -> None:
    script.tell(Request.SET_STATUS, U64(1), flags=HeaderFlags.NEED_REPLY)
    assert script.connection.replies() == []
    script.tell(Request.SET_PROTOCOL_FEATURES, U64(ProtocolFeatures.REPLY_ACK))
    script.tell(Request.SET_STATUS, U64(1))
    assert script.connection.replies() == []
    script.tell(Request.SET_STATUS, U64(1), flags=HeaderFlags.NEED_REPLY)
    assert U64.decode(script.reply(Request.SET_STATUS)).value == 0


def test_a_request_with_a_reply_gets_one_reply_though_it_asks_for_another(ready: Script) -> None:
    ready.tell(Request.GET_QUEUE_NUM, flags=HeaderFlags.NEED_REPLY)
    assert U64.decode(ready.reply(Request.GET_QUEUE_NUM)).value == 1
    assert ready.connection.replies() == []


# ---- the session ---------------------------------------------------------------------------------


def test_features_carry_the_protocols_bit_to_the_vmm_and_not_to_the_device(script: Script) -> None:
    assert U64.decode(script.ask(Request.GET_FEATURES)).value == FEATURES | F_PROTOCOL_FEATURES
    seen = script.tell(Request.SET_FEATURES, U64(FEATURES | F_PROTOCOL_FEATURES))
    assert seen == [events.SetFeatures(FEATURES)]


def test_only_what_is_implemented_is_offered(script: Script) -> None:
    offered = ProtocolFeatures(U64.decode(script.ask(Request.GET_PROTOCOL_FEATURES)).value)
    assert offered == OFFERED
    assert not offered & (
        ProtocolFeatures.LOG_SHMFD | ProtocolFeatures.INFLIGHT_SHMFD | ProtocolFeatures.CONFIG
    )


def test_a_protocol_feature_that_was_not_offered_is_refused(script: Script) -> None:
    text = refused(script.tell, Request.SET_PROTOCOL_FEATURES, U64(int(OFFERED) | 0x1002))
    assert text == (
        f"SET_PROTOCOL_FEATURES: {int(OFFERED) | 0x1002:#x} has 0x1002, which was not offered"
    )


@pytest.mark.parametrize(("n_queues", "pairs"), [(2, 1), (8, 4)])
def test_the_number_of_queues_is_told_in_pairs(n_queues: int, pairs: int) -> None:
    script = Script(n_queues=n_queues)
    assert U64.decode(script.ask(Request.GET_QUEUE_NUM)).value == pairs


def test_there_is_room_for_any_vmms_memory_slots(script: Script) -> None:
    assert U64.decode(script.ask(Request.GET_MAX_MEM_SLOTS)).value == MAX_MEM_SLOTS == 509


def test_the_status_is_kept_for_the_vmm(script: Script) -> None:
    script.tell(Request.SET_STATUS, U64(0xB))
    assert U64.decode(script.ask(Request.GET_STATUS)).value == 0xB
    script.connection.status |= NEEDS_RESET
    assert U64.decode(script.ask(Request.GET_STATUS)).value == 0x4B
    assert "0x100 is more" in refused(script.tell, Request.SET_STATUS, U64(0x100))


@pytest.mark.parametrize(("mtu", "answer"), [(67, 1), (68, 0), (9000, 0), (65535, 0), (65536, 1)])
def test_an_mtu_that_cannot_be_is_answered_and_not_taken(ready: Script, mtu, answer) -> None:
    seen = ready.tell(Request.NET_SET_MTU, U64(mtu), flags=HeaderFlags.NEED_REPLY)
    assert seen == ([] if answer else [events.SetMtu(mtu)])
    assert U64.decode(ready.reply(Request.NET_SET_MTU)).value == answer


def test_configuration_space_is_read_and_written_where_it_is_offered() -> None:
    script = Script(OFFERED | ProtocolFeatures.CONFIG)
    request = ConfigSpace(offset=4, data=bytes(3))
    reply = ConfigSpace.decode(script.ask(Request.GET_CONFIG, request))
    assert reply == ConfigSpace(offset=4, data=b"\4\5\6")
    seen = script.tell(Request.SET_CONFIG, ConfigSpace(offset=0, data=b"x"))
    assert seen == [events.WriteConfig(0, b"x")]
    assert script.tell(Request.SET_CONFIG, ConfigSpace(offset=0, flags=1, data=b"x")) == []


# ---- any messages in any order -------------------------------------------------------------------

small = st.integers(0, 3)
payloads = {
    VringState: st.builds(VringState, index=small, num=st.sampled_from([0, 1, 2, 64, 3, 70000])),
    VringDescriptor: st.builds(VringDescriptor, index=small, nofd=st.booleans()),
    VringAddress: small.map(address),
    U64: st.sampled_from([0, 1, 9000, FEATURES, int(OFFERED), 1 << 63]).map(U64),
    SingleRegion: st.sampled_from([REGION, SECOND]).map(lambda r: SingleRegion(region=r)),
    MemoryTable: st.sampled_from([(), (REGION,), (REGION, SECOND)]).map(
        lambda r: MemoryTable(regions=r)
    ),
}


@st.composite
def sent(draw):
    request = draw(st.sampled_from(sorted(FORMS)))
    form = FORMS[request]
    payload = draw(payloads.get(form.payload, st.just(None)))
    right = form.n_fds(payload) if payload else range(1)
    n_fds = draw(st.sampled_from([*right, *right, *right, 2]))
    return request, payload or b"", n_fds, draw(st.sampled_from([*map(HeaderFlags, (0, 8))]))


class Twin:
    """What a session would hold: checks that events come in a possible order."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.held: list[int] = []

    def see(self, event: events.Event) -> None:
        match event:
            case events.StartQueue(index, _):
                assert index not in self.running
                self.running.add(index)
            case events.StopQueue(index):
                self.running.remove(index)
            case events.EnableQueue(index, _) | events.Kick(index):
                assert index in self.running
            case events.SetMemory(regions, fds):
                assert not self.running
                assert len(regions) == len(fds)
                self.held += fds
            case events.RemoveMemory(_) | events.Reset():
                assert not self.running
            case events.AddMemory(_, fd):
                self.held.append(fd)
            case events.SetKick(_, fd) | events.SetCall(_, fd, _) | events.SetErr(_, fd):
                self.held += [fd] if fd is not None else []
            case events.Discard(fds):
                self.held += fds


@settings(max_examples=150, deadline=None)
@given(st.lists(sent(), max_size=60), st.booleans())
def test_any_messages_in_any_order_lose_no_descriptor_and_start_no_queue_twice(  # D1, D11
    messages, negotiated
) -> None:
    script, twin = Script(), Twin()
    if negotiated:
        script.negotiate()
        twin.held.append(100)
        for event in script.start():
            twin.see(event)
    with suppress(PeerError):
        for request, payload, n_fds, flags in messages:
            for event in script.tell(request, payload, n_fds, flags):
                twin.see(event)
            script.connection.replies()
            started = {ring.index for ring in script.connection.rings if ring.running}
            assert started == twin.running
    left = script.connection.close()
    assert sorted(twin.held + left) == list(range(100, script.next_fd))


@settings(deadline=None)
@given(st.binary(max_size=2000), st.integers(0, 5))
def test_any_bytes_are_taken_or_blamed_on_the_peer(data: bytes, n_fds: int) -> None:
    script = Script()
    with suppress(PeerError):
        script.bytes_(data, script.fds(n_fds))
