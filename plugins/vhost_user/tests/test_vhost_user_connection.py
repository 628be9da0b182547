from __future__ import annotations

from contextlib import suppress

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.errors import PeerError
from vnic.features import Features
from vnic.hookspecs import QueueAddresses
from vnic_vhost_user import events
from vnic_vhost_user.connection import (
    MAX_MEM_SLOTS,
    NEEDS_RESET,
    OFFERED,
    RING_STATES,
    Connection,
    RingState,
)
from vnic_vhost_user.messages import (
    F_PROTOCOL_FEATURES,
    FORMS,
    NO_FLAGS,
    U64,
    ConfigSpace,
    Header,
    HeaderFlags,
    MemoryRegion,
    MemoryTable,
    ProtocolFeatures,
    Request,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
    encode_message,
)

USER = 0x7F00_0000_0000
REGION = MemoryRegion(guest_addr=0x10000, size=0x10000, user_addr=USER, mmap_offset=0x3000)
SECOND = MemoryRegion(guest_addr=0x80000, size=0x10000, user_addr=USER + 0x40000)
ADDRESS = VringAddress(
    index=0, desc_user_addr=USER, avail_user_addr=USER + 0x1000, used_user_addr=USER + 0x2000
)
FEATURES = int(Features.VERSION_1 | Features.EVENT_IDX)


class Script:
    """Feeds a connection, answers its questions, and keeps what it asked for."""

    def __init__(self, offered: ProtocolFeatures = OFFERED, n_queues: int = 2) -> None:
        self.connection = Connection(n_queues, offered)
        self.bases = dict.fromkeys(range(n_queues), 0)
        self.next_fd = 100

    def bytes_(self, data: bytes, fds: tuple[int, ...] = ()) -> list[events.Event]:
        seen: list[events.Event] = []
        while data:
            wants = self.connection.wants
            seen += self.run(self.connection.receive(data[:wants], fds))
            data, fds = data[wants:], ()
        return seen

    def run(self, steps) -> list[events.Event]:
        seen, answer = [], None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return seen
            seen.append(event)
            answer = None
            match event:
                case events.GetFeatures():
                    answer = FEATURES
                case events.StopQueue(index):
                    answer = self.bases[index]
                case events.ReadConfig(offset, n):
                    answer = bytes(range(offset, offset + n))

    def fds(self, n: int) -> tuple[int, ...]:
        self.next_fd += n
        return tuple(range(self.next_fd - n, self.next_fd))

    def tell(self, request, payload=b"", n_fds=0, flags=NO_FLAGS) -> list[events.Event]:
        content = payload if isinstance(payload, bytes) else payload.encode()
        header = Header(request=request, flags=flags, size=len(content))
        return self.bytes_(header.encode() + content, self.fds(n_fds))

    def ask(self, request, payload=b""):
        self.tell(request, payload)
        return self.reply(request)

    def reply(self, request):
        ((data, _),) = self.connection.replies()
        header = Header.decode(data[:12])
        assert (header.request, header.flags) == (request, HeaderFlags.REPLY)
        assert header.size == len(data) - 12
        return data[12:]

    def negotiate(self, features: int = FEATURES | F_PROTOCOL_FEATURES) -> None:
        self.tell(Request.SET_PROTOCOL_FEATURES, U64(OFFERED))
        self.tell(Request.SET_FEATURES, U64(features))
        self.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(REGION,)), 1)

    def start(self, index: int = 0, base: int = 0) -> list[events.Event]:
        self.tell(Request.SET_VRING_NUM, VringState(index=index, num=64))
        self.tell(Request.SET_VRING_BASE, VringState(index=index, num=base))
        self.tell(Request.SET_VRING_ADDR, address(index))
        return self.tell(Request.SET_VRING_KICK, VringDescriptor(index=index), 1)


def address(index: int, **changes: int) -> VringAddress:
    return evolve(ADDRESS, index=index, **changes)


def queue(base: int = 0) -> QueueAddresses:
    return QueueAddresses(size=64, desc_gpa=0x10000, avail_gpa=0x11000, used_gpa=0x12000, base=base)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def ready(script: Script) -> Script:
    script.negotiate()
    return script


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(PeerError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


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


# ---- starting and stopping a queue ---------------------------------------------------------------


def test_a_queue_starts_with_its_kick_at_its_guest_addresses(ready: Script) -> None:
    assert ready.start(base=7) == [
        events.SetKick(0, ready.next_fd - 1),
        events.StartQueue(0, queue(7)),
        events.EnableQueue(0, False),
        events.Kick(0),
    ]


def test_a_queue_without_a_kick_descriptor_is_polled(ready: Script) -> None:
    ready.start()
    ready.ask(Request.GET_VRING_BASE, VringState(index=0))
    ready.tell(Request.SET_VRING_ADDR, ADDRESS)
    seen = ready.tell(Request.SET_VRING_KICK, VringDescriptor(index=0, nofd=True))
    assert seen[:2] == [events.SetKick(0, None), events.StartQueue(0, queue())]


def test_a_queue_is_enabled_before_its_start_as_qemu_does_it(ready: Script) -> None:
    assert ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1)) == []
    assert events.EnableQueue(0, True) in ready.start()


def test_a_queue_is_enabled_after_its_start_as_dpdk_does_it(ready: Script) -> None:
    assert events.EnableQueue(0, False) in ready.start()
    seen = ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1))
    assert seen == [events.EnableQueue(0, True), events.Kick(0)]
    assert ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1)) == []


def test_queues_start_enabled_without_the_protocols_feature_bit(script: Script) -> None:
    script.negotiate(FEATURES)
    assert events.EnableQueue(0, True) in script.start()


def test_reset_owner_disables_all_queues_and_stops_none(ready: Script) -> None:
    ready.start()
    ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1))
    seen = ready.tell(Request.RESET_OWNER)
    assert seen == [events.EnableQueue(0, False), events.Kick(0)]


def test_a_stopped_queue_tells_where_it_may_go_on(ready: Script) -> None:
    ready.start()
    ready.bases[0] = 0xFFFE
    seen = ready.tell(Request.GET_VRING_BASE, VringState(index=0, num=99))
    assert seen == [
        events.StopQueue(0),
        events.DropKick(0),
        events.SetCall(0, None, False),
    ]
    reply = VringState.decode(ready.reply(Request.GET_VRING_BASE))
    assert reply == VringState(index=0, num=0xFFFE)


def test_a_queue_that_never_ran_can_be_stopped(script: Script) -> None:
    reply = VringState.decode(script.ask(Request.GET_VRING_BASE, VringState(index=1)))
    assert reply == VringState(index=1, num=0)


def test_a_stopped_queue_does_not_start_on_its_old_addresses(ready: Script) -> None:  # D11
    for _ in range(3):
        ready.start()
        ready.ask(Request.GET_VRING_BASE, VringState(index=0))
        assert refused(ready.tell, Request.SET_VRING_KICK, VringDescriptor(index=0), 1) == (
            "SET_VRING_KICK: queue 0: it has no addresses; SET_VRING_ADDR comes first"
        )
        ready.connection.close()


def test_a_new_kick_on_a_queue_that_runs_loses_no_kick(ready: Script) -> None:
    ready.start()
    seen = ready.tell(Request.SET_VRING_KICK, VringDescriptor(index=0), 1)
    assert seen == [events.SetKick(0, ready.next_fd - 1), events.Kick(0)]


def test_a_new_call_on_a_queue_that_runs_is_told_so(ready: Script) -> None:
    ready.start()
    seen = ready.tell(Request.SET_VRING_CALL, VringDescriptor(index=0), 1)
    assert seen == [events.SetCall(0, ready.next_fd - 1, True)]
    seen = ready.tell(Request.SET_VRING_CALL, VringDescriptor(index=0, nofd=True))
    assert seen == [events.SetCall(0, None, True)]


def test_what_a_queue_needs_is_asked_for_by_name(script: Script) -> None:
    kick = (Request.SET_VRING_KICK, VringDescriptor(index=1), 1)
    assert "queue 1: no features were chosen" in refused(script.tell, *kick)
    script.connection.close()
    script.tell(Request.SET_FEATURES, U64(FEATURES))
    assert "queue 1: it has no size" in refused(script.tell, *kick)
    script.connection.close()
    script.tell(Request.SET_VRING_NUM, VringState(index=1, num=64))
    assert "queue 1: it has no addresses" in refused(script.tell, *kick)
    script.connection.close()
    script.tell(Request.SET_VRING_ADDR, address(1))
    assert refused(script.tell, *kick) == (
        "SET_VRING_KICK: queue 1: its descriptor table, 0x400 bytes at user address "
        "0x7f0000000000, lies in none of the 0 regions"
    )


@pytest.mark.parametrize("n", [0, 3, 65, 32769, 65536, 0x10040, 0xFFFFFFFF])
def test_a_size_that_cannot_be_is_refused(ready: Script, n: int) -> None:  # B12
    assert f"can't have {n} entries" in refused(
        ready.tell, Request.SET_VRING_NUM, VringState(index=0, num=n)
    )


def test_a_base_beyond_sixteen_bits_is_refused(ready: Script) -> None:
    assert "0x10000 for queue 0 is no avail index" in refused(
        ready.tell, Request.SET_VRING_BASE, VringState(index=0, num=0x10000)
    )


def test_logging_is_refused_where_it_was_not_offered(ready: Script) -> None:  # D7
    assert "flags 0x1 on queue 0; logging was not offered" in refused(
        ready.tell, Request.SET_VRING_ADDR, address(0, flags=1)
    )


ENDS = {"desc_user_addr": 16 * 64, "avail_user_addr": 6 + 2 * 64, "used_user_addr": 6 + 8 * 64}


@pytest.mark.parametrize("field", ENDS)
def test_a_ring_lies_in_one_region_to_its_last_byte(ready: Script, field: str) -> None:  # B11
    end = USER + REGION.size
    ready.start(1)
    for at, fits in [(end - ENDS[field], True), (end - ENDS[field] + 1, False), (USER - 1, False)]:
        ready.tell(Request.SET_VRING_NUM, VringState(index=0, num=64))
        ready.tell(Request.SET_VRING_ADDR, address(0, **{field: at}))
        kick = (Request.SET_VRING_KICK, VringDescriptor(index=0), 1)
        if fits:
            ready.tell(*kick)
            ready.ask(Request.GET_VRING_BASE, VringState(index=0))
        else:
            assert "lies in none of the 1 regions" in refused(ready.tell, *kick)
            ready.connection.close()


def test_without_event_index_the_rings_end_two_bytes_sooner(script: Script) -> None:
    script.negotiate(int(Features.VERSION_1) | F_PROTOCOL_FEATURES)
    at = USER + REGION.size - (4 + 2 * 64)
    script.tell(Request.SET_VRING_NUM, VringState(index=0, num=64))
    script.tell(Request.SET_VRING_ADDR, address(0, avail_user_addr=at))
    script.tell(Request.SET_VRING_KICK, VringDescriptor(index=0), 1)


VRING_REQUESTS = [
    (Request.SET_VRING_NUM, VringState, 0),
    (Request.SET_VRING_BASE, VringState, 0),
    (Request.GET_VRING_BASE, VringState, 0),
    (Request.SET_VRING_ENABLE, VringState, 0),
    (Request.SET_VRING_ADDR, VringAddress, 0),
    (Request.SET_VRING_KICK, VringDescriptor, 1),
    (Request.SET_VRING_CALL, VringDescriptor, 1),
    (Request.SET_VRING_ERR, VringDescriptor, 1),
]


@pytest.mark.parametrize(("request_", "payload", "n_fds"), VRING_REQUESTS)
@pytest.mark.parametrize("index", [2, 255, 0x10000, 0xFFFFFFFF])
def test_a_queue_that_does_not_exist_is_refused(  # D4, D8
    ready: Script, request_, payload, n_fds, index
) -> None:
    if payload is VringDescriptor and index > 255:
        message = U64(index)
    elif payload is VringAddress:
        message = address(index)
    else:
        message = payload(index=index)
    text = refused(ready.tell, request_, message, n_fds)
    assert text.startswith(f"{request_.name}: ")
    assert f"{index:#x}" in text
    assert len(ready.connection.close()) == n_fds


# ---- what may come when --------------------------------------------------------------------------


def test_a_started_queue_keeps_size_place_and_addresses(ready: Script) -> None:  # B9
    ready.start()
    for request, payload in [
        (Request.SET_VRING_NUM, VringState(index=0, num=128)),
        (Request.SET_VRING_BASE, VringState(index=0, num=1)),
        (Request.SET_VRING_ADDR, address(0, desc_user_addr=USER + 0x4000)),
    ]:
        assert refused(ready.tell, request, payload) == (
            f"{request.name}: queue 0 is started; GET_VRING_BASE stops it"
        )
    ring = ready.connection.rings[0]
    assert (ring.size, ring.base, ring.address) == (64, 0, ADDRESS)


def test_every_ring_message_is_in_the_table_for_a_stopped_queue() -> None:
    requests = {request for request, _, _ in VRING_REQUESTS}
    assert {request for state, request in RING_STATES if state is RingState.STOPPED} == requests
    assert requests - {request for state, request in RING_STATES if state is RingState.STARTED} == {
        Request.SET_VRING_NUM,
        Request.SET_VRING_BASE,
        Request.SET_VRING_ADDR,
    }


def test_features_stay_while_a_queue_is_started(ready: Script) -> None:  # B10
    ready.start()
    again = U64(FEATURES | F_PROTOCOL_FEATURES)
    assert ready.tell(Request.SET_FEATURES, again) == []
    other = U64(int(Features.VERSION_1) | F_PROTOCOL_FEATURES)
    assert "while queue 0 is started" in refused(ready.tell, Request.SET_FEATURES, other)


@pytest.mark.parametrize("request_", [Request.RESET_DEVICE, Request.SET_STATUS])
def test_a_reset_stops_all_queues_and_keeps_the_memory(ready: Script, request_) -> None:
    ready.start(0)
    ready.start(1)
    seen = ready.tell(request_, U64(0) if request_ is Request.SET_STATUS else b"")
    assert seen == [
        events.StopQueue(0),
        events.DropKick(0),
        events.StopQueue(1),
        events.DropKick(1),
        events.Reset(),
    ]
    assert ready.connection.regions == [REGION]
    assert "no features were chosen" in refused(ready.start)
    ready.connection.close()
    ready.tell(Request.SET_FEATURES, U64(FEATURES | F_PROTOCOL_FEATURES))
    assert events.StartQueue(0, queue()) in ready.start()


def test_a_device_reset_disables_queues_and_a_status_reset_does_not(ready: Script) -> None:
    ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1))
    ready.tell(Request.SET_STATUS, U64(0))
    assert ready.connection.rings[0].enabled
    ready.tell(Request.RESET_DEVICE)
    assert not ready.connection.rings[0].enabled


# ---- memory --------------------------------------------------------------------------------------


def test_a_new_memory_table_restarts_the_queues_where_they_were(ready: Script) -> None:
    ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1))
    ready.start()
    ready.bases[0] = 40
    moved = MemoryRegion(guest_addr=0x90000, size=0x10000, user_addr=USER)
    seen = ready.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(SECOND, moved)), 2)
    assert seen == [
        events.StopQueue(0),
        events.SetMemory((SECOND, moved), (ready.next_fd - 2, ready.next_fd - 1)),
        events.StartQueue(
            0,
            QueueAddresses(size=64, desc_gpa=0x90000, avail_gpa=0x91000, used_gpa=0x92000, base=40),
        ),
        events.EnableQueue(0, True),
        events.Kick(0),
    ]


def test_a_memory_table_without_the_ring_of_a_started_queue_is_refused(ready: Script) -> None:
    ready.start()
    text = refused(ready.tell, Request.SET_MEM_TABLE, MemoryTable(regions=(SECOND,)), 1)
    assert text.startswith("SET_MEM_TABLE: queue 0: its descriptor table")


def test_memory_that_comes_does_not_disturb_a_queue_that_runs(ready: Script) -> None:
    ready.start()
    seen = ready.tell(Request.ADD_MEM_REG, SingleRegion(region=SECOND), 1)
    assert seen == [events.AddMemory(SECOND, ready.next_fd - 1)]


def test_a_region_that_is_cut_in_two_pauses_the_queues_until_it_is_whole(ready: Script) -> None:
    ready.start()
    ready.bases[0] = 5
    seen = ready.tell(Request.REM_MEM_REG, SingleRegion(region=REGION))
    assert seen == [events.StopQueue(0), events.RemoveMemory(REGION), events.ResumeSoon()]
    assert ready.run(ready.connection.resume()) == []

    half = REGION.size // 2
    low = MemoryRegion(guest_addr=0x10000, size=half, user_addr=USER)
    high = MemoryRegion(guest_addr=0x10000 + half, size=half, user_addr=USER + half)
    for part in (low, high):
        seen = ready.tell(Request.ADD_MEM_REG, SingleRegion(region=part), 1)
        assert seen == [events.AddMemory(part, ready.next_fd - 1), events.ResumeSoon()]
    assert ready.run(ready.connection.resume()) == [
        events.StartQueue(0, queue(5)),
        events.EnableQueue(0, False),
        events.Kick(0),
    ]
    assert ready.run(ready.connection.resume()) == []


def test_a_queue_stopped_while_paused_tells_its_place_and_stays_stopped(ready: Script) -> None:
    ready.start()
    ready.bases[0] = 9
    ready.tell(Request.REM_MEM_REG, SingleRegion(region=REGION))
    reply = VringState.decode(ready.ask(Request.GET_VRING_BASE, VringState(index=0)))
    assert reply.num == 9
    ready.tell(Request.ADD_MEM_REG, SingleRegion(region=REGION), 1)
    assert ready.run(ready.connection.resume()) == []


def test_a_region_is_removed_whatever_its_offset_and_its_descriptor_closed(ready: Script) -> None:
    seen = ready.tell(Request.REM_MEM_REG, SingleRegion(region=evolve(REGION, mmap_offset=0)), 1)
    assert seen == [
        events.RemoveMemory(REGION),
        events.ResumeSoon(),
        events.Discard((ready.next_fd - 1,)),
    ]


def test_a_region_that_is_not_there_is_not_removed(ready: Script) -> None:
    text = refused(ready.tell, Request.REM_MEM_REG, SingleRegion(region=SECOND))
    assert text.endswith("there is none such")


def test_there_are_as_many_slots_as_were_told(ready: Script) -> None:
    for n in range(MAX_MEM_SLOTS - 1):
        region = MemoryRegion(guest_addr=0x1000_0000 + n * 0x1000, size=0x1000, user_addr=n)
        ready.tell(Request.ADD_MEM_REG, SingleRegion(region=region), 1)
    text = refused(ready.tell, Request.ADD_MEM_REG, SingleRegion(region=SECOND), 1)
    assert "509 regions already" in text


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
