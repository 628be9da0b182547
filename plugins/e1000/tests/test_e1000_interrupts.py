"""When the pin rises: causes and mask, throttling, delays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.loop import Loop
from vnic_e1000.interrupts import DELAY_UNIT_S, HANDLER_S, ITR_UNIT_S, Delay, Interrupts
from vnic_e1000.registers import CAUSES, Cause

MAC = b"\x52\x54\x00\x12\x34\x56"
TXDW, LSC, RXT0 = 1, 4, 0x80
IDE = 1 << 31


def sent(bench: Any, command: int = 0x0B) -> None:
    bench.send((bench.guest.buffer(60), 60 | command << 24))


# ---- causes and mask -----------------------------------------------------------------------------


@pytest.mark.parametrize("bit", range(17))
def test_a_cause_interrupts_while_it_is_enabled_and_no_other(bench: Any, bit: int) -> None:
    guest, host = bench.guest, bench.host
    guest.read("ICR")
    guest.write("ICS", 1 << bit)
    assert not host.irq_level
    guest.write("IMS", 1 << bit)
    assert host.irq_level
    assert guest.read("ICS") == 1 << bit  # as the silicon does
    assert guest.read("ICR") == 1 << bit
    assert not host.irq_level
    assert guest.read("ICR") == 0
    guest.write("ICS", CAUSES & ~(1 << bit))
    assert not host.irq_level
    assert guest.read("IMS") == 1 << bit
    guest.write("IMC", 1 << bit)
    guest.write("ICS", 1 << bit)
    assert not host.irq_level
    assert guest.read("IMC") == 0


def test_causes_are_cleared_by_writing_them_too(bench: Any) -> None:
    guest = bench.guest
    guest.read("ICR")
    guest.write("IMS", 6)
    guest.write("ICS", 6)
    guest.write("ICR", 2)
    assert bench.host.irq_level
    guest.write("ICR", 4)
    assert not bench.host.irq_level


def test_the_pin_is_a_level_until_the_causes_are_read(bench: Any) -> None:
    guest = bench.guest
    guest.read("ICR")
    guest.post(2048, 2048, 2048)
    guest.write("IMS", RXT0)
    for _ in range(3):
        bench.receive(MAC + bytes(54))
        assert bench.host.irq_level
    assert bench.host.irq_edges == 1


def test_a_burst_interrupts_once(bench: Any) -> None:
    guest = bench.guest
    guest.read("ICR")
    guest.post(*[2048] * 7)
    guest.write("IMS", 0xFFFF)
    bench.receive(*[MAC + bytes(54)] * 5)
    assert bench.host.irq_edges == 1


def test_a_reset_takes_the_pin_down(bench: Any) -> None:
    bench.guest.write("IMS", LSC)
    bench.guest.write("ICS", LSC)
    assert bench.host.irq_level
    bench.guest.write("CTRL", 1 << 26)
    assert not bench.host.irq_level
    assert bench.guest.read("IMS") == 0


# ---- throttling ----------------------------------------------------------------------------------


def test_between_two_interrupts_passes_the_interval(bench: Any) -> None:
    guest, host = bench.guest, bench.host
    guest.read("ICR")
    guest.write("ITR", 1000)
    guest.write("IMS", LSC)
    guest.write("ICS", LSC)
    assert host.irq_level  # the first has nothing to wait for
    guest.read("ICR")
    guest.write("IMS", LSC)
    guest.write("ICS", LSC)
    assert not host.irq_level
    bench.pass_s(900 * ITR_UNIT_S)
    assert not host.irq_level
    bench.pass_s(101 * ITR_UNIT_S)
    assert host.irq_level


def test_a_cause_that_was_taken_meanwhile_does_not_interrupt(bench: Any) -> None:
    guest, host = bench.guest, bench.host
    guest.write("ITR", 1000)
    guest.write("IMS", LSC)
    guest.write("ICS", LSC)
    guest.read("ICR")
    guest.write("ICS", LSC)
    assert guest.read("ICR") == LSC
    bench.pass_s(1)
    assert not host.irq_level


@pytest.mark.parametrize("register", ["IMC", "IMS"])
def test_a_handler_that_has_taken_the_causes_is_not_interrupted(bench: Any, register: str) -> None:
    guest, host = bench.guest, bench.host
    guest.read("ICR")
    guest.write("IMS", LSC | RXT0)
    guest.write("ICS", LSC)
    guest.read("ICR")
    guest.write("ICS", RXT0)  # a frame came after the handler looked
    assert not host.irq_level
    guest.write(register, RXT0 if register == "IMS" else LSC)  # the handler is over
    assert host.irq_level


def test_a_handler_that_says_nothing_more_is_waited_for_half_a_millisecond(bench: Any) -> None:
    guest, host = bench.guest, bench.host
    guest.read("ICR")
    guest.write("IMS", LSC)
    guest.write("ICS", LSC)
    guest.read("ICR")
    guest.write("ICS", LSC)
    bench.pass_s(0.9 * HANDLER_S)
    assert not host.irq_level
    bench.pass_s(0.2 * HANDLER_S)
    assert host.irq_level


# ---- delays --------------------------------------------------------------------------------------


def test_without_a_delay_received_frames_interrupt_at_once(bench: Any) -> None:
    bench.guest.post(2048)
    bench.guest.write("RADV", 100)  # means nothing by itself
    bench.guest.read("ICR")
    bench.receive(MAC + bytes(54))
    assert bench.guest.read("ICR") & RXT0


def test_each_frame_puts_a_delay_off_and_the_absolute_one_ends_it(bench: Any) -> None:
    guest = bench.guest
    guest.post(*[2048] * 7)
    guest.write("RDTR", 100)
    guest.write("RADV", 250)
    guest.read("ICR")
    for i in range(6):
        bench.receive(MAC + bytes(54))
        bench.pass_s(60 * DELAY_UNIT_S)
        assert bool(guest.read("ICR") & RXT0) is (i == 4), i


def test_a_delay_ends_when_nothing_follows(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048, 2048)
    guest.write("RDTR", 100)
    guest.read("ICR")
    bench.receive(MAC + bytes(54))
    bench.pass_s(99 * DELAY_UNIT_S)
    assert not guest.read("ICR") & RXT0
    bench.pass_s(2 * DELAY_UNIT_S)
    assert guest.read("ICR") & RXT0


def test_the_flush_bit_ends_a_delay_and_does_not_stay(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048, 2048)
    guest.write("RDTR", 1 << 31 | 100)
    assert not guest.read("ICR") & RXT0
    bench.receive(MAC + bytes(54))
    assert not guest.read("ICR") & RXT0
    guest.write("RDTR", 1 << 31 | 100)
    assert guest.read("ICR") & RXT0
    assert guest.read("RDTR") == 100


def test_only_descriptors_that_allow_it_are_told_of_late(bench: Any) -> None:
    guest = bench.guest
    guest.write("TIDV", 100)
    guest.read("ICR")
    sent(bench, 0x0B | 0x80)
    assert guest.tx_status(0) == 1
    assert not guest.read("ICR") & TXDW
    bench.pass_s(101 * DELAY_UNIT_S)
    assert guest.read("ICR") & TXDW
    sent(bench)
    assert guest.read("ICR") & TXDW


def test_the_absolute_transmit_delay_ends_waiting(bench: Any) -> None:
    guest = bench.guest
    guest.write("TIDV", 100)
    guest.write("TADV", 150)
    guest.read("ICR")
    for i in range(3):
        sent(bench, 0x0B | 0x80)
        bench.pass_s(60 * DELAY_UNIT_S)
        assert bool(guest.read("ICR") & TXDW) is (i == 2), i


def test_a_reset_forgets_what_waits(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048)
    guest.write("RDTR", 100)
    bench.receive(MAC + bytes(54))
    guest.write("CTRL", 1 << 26)
    bench.pass_s(1)
    assert guest.read("ICR") == 0


# ---- any sequence --------------------------------------------------------------------------------

steps = st.one_of(
    st.tuples(st.sampled_from(["raise", "enable", "disable", "clear"]), st.integers(0, 0xFF)),
    st.tuples(st.sampled_from(["take", "event", "flush"]), st.just(0)),
    st.tuples(st.just("pass"), st.integers(0, 300)),
)


@settings(deadline=None)
@given(st.lists(steps, max_size=60), st.integers(0, 200), st.integers(0, 100), st.integers(0, 300))
def test_the_pin_never_rises_too_soon_and_never_stays_down_for_long(
    steps: list[tuple[str, int]], interval: int, packet: int, absolute: int
) -> None:
    now = [100.0]
    loop = Loop(clock=lambda: now[0])
    rises: list[float] = []
    level = [False]

    def set_irq(up: bool) -> None:
        assert up is not level[0]
        level[0] = up
        if up:
            rises.append(now[0])

    interrupts = Interrupts(loop, set_irq)
    interrupts.interval_s = interval * 1e-6
    delay = Delay(loop, interrupts, Cause.RXT0)
    delay.packet, delay.absolute = packet, absolute
    handled = 0.0  # until then the driver's handler is at work, which has taken the causes
    for what, n in steps:
        if what in ("enable", "disable"):
            handled = 0.0
        elif what == "take" and level[0]:
            handled = now[0] + HANDLER_S
        match what:
            case "raise":
                interrupts.raise_cause(n)
            case "enable":
                interrupts.enable(n)
            case "disable":
                interrupts.disable(n)
            case "clear":
                interrupts.clear_cause(n)
            case "take":
                interrupts.take_cause()
            case "event":
                delay.event()
            case "flush":
                delay.flush()
            case "pass":
                now[0] += n * 1e-6
        loop.dispatch()
        loop.dispatch()
        if level[0]:
            assert interrupts.cause & interrupts.mask
        elif interrupts.cause & interrupts.mask:
            assert now[0] < max(rises[-1] + interval * 1e-6, handled)
    assert all(
        later - earlier >= interval * 1e-6 - 1e-9 for earlier, later in itertools.pairwise(rises)
    )
    loop.close()
