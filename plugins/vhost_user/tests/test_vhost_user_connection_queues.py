"""Messages about queues: how they start and stop, and what may come when."""

from __future__ import annotations

import pytest
from kit.vhost_user import ADDRESS, FEATURES, REGION, USER, Script, address, queue, refused
from vnic.features import Features
from vnic_vhost_user import events
from vnic_vhost_user.connection import RING_STATES, RingState
from vnic_vhost_user.messages import F_PROTOCOL_FEATURES, Request
from vnic_vhost_user.payloads import U64, VringAddress, VringDescriptor, VringState

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
