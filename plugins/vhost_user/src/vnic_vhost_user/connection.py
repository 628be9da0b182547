"""One session's state machine: bytes and descriptors in, events and replies out.

It owns no socket, maps nothing and closes nothing.  A session feeds it::

    steps = connection.receive(data, fds)      # at most connection.wants bytes
    answer = None
    while (event := next event of steps.send(answer)):
        answer = carry it out
    send each of connection.replies()

A message is answered after its events were carried out.  If one of them can't be, the session
ends, and closes what `Connection.close` returns.

Spec: vhost-user protocol (QEMU, docs/interop), "Communication"; "Ring states".
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from enum import Enum
from typing import Any, Final, TypeAlias

import attrs
from vnic.errors import PeerError
from vnic.features import Features, names
from vnic.hookspecs import QueueAddresses
from vnic.session import Reply

from vnic_vhost_user import events
from vnic_vhost_user.messages import (
    F_PROTOCOL_FEATURES,
    NO_FEATURES,
    Form,
    Header,
    HeaderFlags,
    ProtocolFeatures,
    Request,
    check_header,
    decode_payload,
    encode_message,
    request_name,
)
from vnic_vhost_user.payloads import (
    U64,
    ConfigSpace,
    MemoryRegion,
    MemoryTable,
    Payload,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
)

log: Final = logging.getLogger("vnic.vhost_user")

OFFERED: Final = (
    ProtocolFeatures.MQ
    | ProtocolFeatures.REPLY_ACK
    | ProtocolFeatures.NET_MTU
    | ProtocolFeatures.RESET_DEVICE
    | ProtocolFeatures.CONFIGURE_MEM_SLOTS
    | ProtocolFeatures.STATUS
)
"""All that is implemented, but CONFIG: QEMU warns at each start of a network device that has it,
and never uses it.
"""

MAX_MEM_SLOTS: Final = 509
"""Regions of guest memory: as many as KVM has slots for, so no VMM finds it few."""

MAX_QUEUE_SIZE: Final = 32768
"""Spec: Virtio 1.3, "Split Virtqueues"."""

MTU_RANGE: Final = range(68, 65536)
"""Spec: Virtio 1.3, "Network Device", "Device configuration layout", ``mtu``."""

NEEDS_RESET: Final = 0x40
"""Spec: Virtio 1.3, "Device Status Field", DEVICE_NEEDS_RESET."""

Steps: TypeAlias = Generator[events.Event, Any, Payload | bool | None]
"""A message being carried out.  Returns the reply; or False, when it could not be obeyed, and None
when it was, for those who want to be told.
"""


class RingState(Enum):
    """Spec: vhost-user, "Ring states"."""

    STOPPED = "stopped"
    STARTED = "started"


_S, _R = RingState, Request
RING_STATES: Final[dict[tuple[RingState, Request], RingState]] = {
    (_S.STOPPED, _R.SET_VRING_NUM): _S.STOPPED,
    (_S.STOPPED, _R.SET_VRING_ADDR): _S.STOPPED,
    (_S.STOPPED, _R.SET_VRING_BASE): _S.STOPPED,
    (_S.STOPPED, _R.SET_VRING_KICK): _S.STARTED,
    (_S.STOPPED, _R.SET_VRING_CALL): _S.STOPPED,
    (_S.STOPPED, _R.SET_VRING_ERR): _S.STOPPED,
    (_S.STOPPED, _R.SET_VRING_ENABLE): _S.STOPPED,
    (_S.STOPPED, _R.GET_VRING_BASE): _S.STOPPED,
    (_S.STARTED, _R.SET_VRING_KICK): _S.STARTED,
    (_S.STARTED, _R.SET_VRING_CALL): _S.STARTED,
    (_S.STARTED, _R.SET_VRING_ERR): _S.STARTED,
    (_S.STARTED, _R.SET_VRING_ENABLE): _S.STARTED,
    (_S.STARTED, _R.GET_VRING_BASE): _S.STOPPED,
}
"""What is absent is the peer's fault and changes nothing: a queue that runs keeps its size, its
addresses and its place, whatever the VMM sends.
"""


@attrs.define
class Ring:
    """What is known of one queue."""

    index: int
    state: RingState = RingState.STOPPED
    running: bool = False
    """Started, and the face serves it: not so while memory is being changed around it."""
    enabled: bool = False
    """Tracked while stopped too, and takes effect with the start."""
    size: int = 0
    base: int = 0
    address: VringAddress | None = None

    def go(self, request: Request) -> None:
        """Take the state that the message brings it to; `Connection` has checked that it may."""
        self.state = RING_STATES[self.state, request]


class Connection:
    """The server's side of one session with a VMM."""

    def __init__(self, n_queues: int, offered: ProtocolFeatures = OFFERED) -> None:
        self.rings: Final = [Ring(index) for index in range(n_queues)]
        self.regions: list[MemoryRegion] = []
        self.features: int | None = None
        """Virtio's, as the driver chose; None before that, and after a reset."""
        self.protocol_features = NO_FEATURES
        self.status = 0
        """The device status as the VMM told it.  Spec: Virtio 1.3, "Device Status Field"."""
        self._offered = offered
        self._offered_features: int | None = None
        self._buffer = bytearray()
        self._header: Header | None = None
        self._form: Form
        self._fds: list[int] = []
        self._replies: list[Reply] = []

    @property
    def wants(self) -> int:
        """How many bytes to read next, never across the end of a message.

        A stream's recvmsg returns bytes from before a descriptor together with those that it came
        with.  Whoever reads no further than this always knows whose message a descriptor is.
        """
        total = Header.LAYOUT.size + (self._header.size if self._header else 0)
        return total - len(self._buffer)

    @property
    def mid_message(self) -> bool:
        """Whether a part of a message has come, and the rest hasn't."""
        return bool(self._buffer)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Steps:
        """Take bytes, at most `wants`, and the descriptors that came with them.

        Raises: PeerError, for whatever breaks the protocol.
        """
        if len(data) > self.wants:
            raise ValueError(f"{len(data)} bytes, {self.wants} were wanted")
        self._fds += fds
        self._buffer += data
        return self._steps()

    def resume(self) -> Steps:
        """Start again the queues that were stopped while memory changed, where they can be."""
        for ring in self.rings:
            if ring.state is RingState.STARTED and not ring.running:
                try:
                    queue = self._locate(ring)
                except PeerError as error:
                    log.warning("queue %d stays paused: %s", ring.index, error)
                    continue
                yield from self._run(ring, queue)
        return None

    def replies(self) -> list[Reply]:
        """Return the replies that are due, once."""
        replies, self._replies = self._replies, []
        return replies

    def close(self) -> list[int]:
        """Return the descriptors that came in and went nowhere yet: close them."""
        fds, self._fds = self._fds, []
        return fds

    # ---- messages --------------------------------------------------------------------------------

    def _steps(self) -> Steps:
        if self._header is None and not self.wants:
            self._header = Header.decode(bytes(self._buffer))
            self._form = check_header(self._header, self._offered)
        if self._header is None or self.wants:
            return None
        header, data = self._header, bytes(self._buffer[Header.LAYOUT.size :])
        payload = decode_payload(header.request, self._form, data, len(self._fds))
        log.debug("%s %s, %d descriptors", Request(header.request).name, payload, len(self._fds))
        self._header = None
        self._buffer.clear()
        outcome = getattr(self, f"_do_{Request(header.request).name}")(payload)
        if isinstance(outcome, Generator):
            outcome = yield from outcome
        if self._fds:
            yield events.Discard(self._take_fds())
        self._reply(header, outcome)
        return None

    def _reply(self, header: Header, outcome: Payload | bool | None) -> None:
        if outcome is None or isinstance(outcome, bool):
            if (
                HeaderFlags.NEED_REPLY not in header.flags
                or ProtocolFeatures.REPLY_ACK not in self.protocol_features
            ):
                return
            outcome = U64(int(outcome is False))
        self._replies.append((encode_message(header.request, outcome, HeaderFlags.REPLY), ()))

    def _take_fds(self) -> tuple[int, ...]:
        return tuple(self.close())

    def _take_fd(self) -> int | None:
        fds = self._take_fds()
        return fds[0] if fds else None

    # ---- the session -----------------------------------------------------------------------------

    def _do_GET_FEATURES(self, payload: Payload) -> Steps:
        self._offered_features = yield events.GetFeatures()
        return U64(self._offered_features | F_PROTOCOL_FEATURES)

    def _do_SET_FEATURES(self, payload: U64) -> Steps:
        features = payload.value & ~F_PROTOCOL_FEATURES
        if self._offered_features is None:
            self._offered_features = yield events.GetFeatures()
        extra = features & ~self._offered_features
        if extra:
            # After a reconnection the guest still has what it chose of our predecessor's offer.
            raise PeerError(
                f"SET_FEATURES: the driver takes {names(Features(extra))}, which is not offered; "
                f"if it was, before: reset the guest, or give the NIC the same backend again"
            )
        # QEMU sends them once for each pair of queues, while the pairs before already run.
        if features != self.features:
            for ring in self.rings:
                if ring.state is RingState.STARTED:
                    raise PeerError(
                        f"SET_FEATURES: {features:#x} instead of {self.features or 0:#x}, while "
                        f"queue {ring.index} is started"
                    )
            yield events.SetFeatures(features)
            self.features = features
        if not payload.value & F_PROTOCOL_FEATURES:
            for ring in self.rings:
                yield from self._enable(ring, True)
        return None

    def _do_GET_PROTOCOL_FEATURES(self, payload: Payload) -> Payload:
        return U64(self._offered)

    def _do_SET_PROTOCOL_FEATURES(self, payload: U64) -> None:
        extra = payload.value & ~int(self._offered)
        if extra:
            raise PeerError(
                f"SET_PROTOCOL_FEATURES: {payload.value:#x} has {extra:#x}, which was not offered"
            )
        self.protocol_features = ProtocolFeatures(payload.value)

    def _do_GET_QUEUE_NUM(self, payload: Payload) -> Payload:
        # In pairs: QEMU and DPDK compare it with queues=, and DPDK's own server answers so.
        return U64(len(self.rings) // 2)

    def _do_SET_OWNER(self, payload: Payload) -> None:
        """Nothing to do: whoever is connected is the owner."""

    def _do_RESET_OWNER(self, payload: Payload) -> Steps:
        """Deprecated; the specification would have it ignored, or all rings disabled."""
        for ring in self.rings:
            yield from self._enable(ring, False)
        return None

    def _do_RESET_DEVICE(self, payload: Payload) -> Steps:
        yield from self._reset()
        for ring in self.rings:
            ring.enabled = False
        return None

    def _do_SET_STATUS(self, payload: U64) -> Steps:
        if payload.value > 0xFF:
            raise PeerError(f"SET_STATUS: {payload.value:#x} is more than the field's 8 bits")
        if not payload.value:
            yield from self._reset()
        self.status = payload.value
        return None

    def _do_GET_STATUS(self, payload: Payload) -> Payload:
        return U64(self.status)

    def _do_NET_SET_MTU(self, payload: U64) -> Steps:
        if payload.value not in MTU_RANGE:
            return False
        yield events.SetMtu(payload.value)
        return None

    def _do_GET_CONFIG(self, payload: ConfigSpace) -> Steps:
        data: bytes = yield events.ReadConfig(payload.offset, len(payload.data))
        return ConfigSpace(offset=payload.offset, flags=payload.flags, data=data)

    def _do_SET_CONFIG(self, payload: ConfigSpace) -> Steps:
        if payload.flags:  # a migration's, to fields that are read-only: none is offered
            return False
        yield events.WriteConfig(payload.offset, payload.data)
        return None

    # ---- memory ----------------------------------------------------------------------------------

    def _do_GET_MAX_MEM_SLOTS(self, payload: Payload) -> Payload:
        return U64(MAX_MEM_SLOTS)

    def _do_SET_MEM_TABLE(self, payload: MemoryTable) -> Steps:
        # QEMU sends it while queues run, when memory comes or goes, and DPDK at each hugepage.
        yield from self._pause()
        self.regions = list(payload.regions)
        yield events.SetMemory(payload.regions, self._take_fds())
        for ring in self.rings:
            if ring.state is RingState.STARTED:
                yield from self._run(ring, self._located(ring, Request.SET_MEM_TABLE))
        return None

    def _do_ADD_MEM_REG(self, payload: SingleRegion) -> Steps:
        if len(self.regions) == MAX_MEM_SLOTS:
            raise PeerError(f"ADD_MEM_REG: there are {MAX_MEM_SLOTS} regions already, the most")
        (fd,) = self._take_fds()
        yield events.AddMemory(payload.region, fd)
        self.regions.append(payload.region)
        if any(ring.state is RingState.STARTED and not ring.running for ring in self.rings):
            yield events.ResumeSoon()
        return None

    def _do_REM_MEM_REG(self, payload: SingleRegion) -> Steps:
        for region in self.regions:
            if attrs.evolve(payload.region, mmap_offset=region.mmap_offset) == region:
                break
        else:
            raise PeerError(f"REM_MEM_REG: {payload.region}: there is none such")
        # A VMM that cuts a region in two removes it and adds two, one message each.  Rings and
        # buffers in it are unreachable in between, and the guest is not to blame for that.
        yield from self._pause()
        self.regions.remove(region)
        yield events.RemoveMemory(region)
        yield events.ResumeSoon()
        return None

    # ---- queues ----------------------------------------------------------------------------------

    def _do_SET_VRING_NUM(self, payload: VringState) -> None:
        ring = self._ring(Request.SET_VRING_NUM, payload.index)
        if not 0 < payload.num <= MAX_QUEUE_SIZE or payload.num & (payload.num - 1):
            raise PeerError(
                f"SET_VRING_NUM: queue {ring.index} can't have {payload.num} entries: a power of "
                f"two up to {MAX_QUEUE_SIZE} is needed"
            )
        ring.size = payload.num

    def _do_SET_VRING_ADDR(self, payload: VringAddress) -> None:
        ring = self._ring(Request.SET_VRING_ADDR, payload.index)
        if payload.flags:
            raise PeerError(
                f"SET_VRING_ADDR: flags {payload.flags:#x} on queue {ring.index}; logging was not "
                f"offered"
            )
        ring.address = payload

    def _do_SET_VRING_BASE(self, payload: VringState) -> None:
        ring = self._ring(Request.SET_VRING_BASE, payload.index)
        if payload.num > 0xFFFF:
            raise PeerError(
                f"SET_VRING_BASE: {payload.num:#x} for queue {ring.index} is no avail index of a "
                f"split ring, which has 16 bits"
            )
        ring.base = payload.num

    def _do_GET_VRING_BASE(self, payload: VringState) -> Steps:
        ring = self._ring(Request.GET_VRING_BASE, payload.index)
        yield from self._stop(ring)
        ring.go(Request.GET_VRING_BASE)
        # Kick and call are of the run that ends here; the next one brings its own.
        yield events.SetCall(ring.index, None, running=False)
        return VringState(index=ring.index, num=ring.base)

    def _do_SET_VRING_KICK(self, payload: VringDescriptor) -> Steps:
        ring = self._ring(Request.SET_VRING_KICK, payload.index)
        if ring.state is RingState.STARTED:
            yield events.SetKick(ring.index, self._take_fd())
            if ring.running:  # what the descriptor before announced is not forgotten
                yield events.Kick(ring.index)
            return None
        # Started here and not at the first kick: buffers that were posted before a reconnection
        # are never announced again.
        queue = self._located(ring, Request.SET_VRING_KICK)
        yield events.SetKick(ring.index, self._take_fd())
        ring.go(Request.SET_VRING_KICK)
        yield from self._run(ring, queue)
        return None

    def _do_SET_VRING_CALL(self, payload: VringDescriptor) -> Steps:
        ring = self._ring(Request.SET_VRING_CALL, payload.index)
        yield events.SetCall(ring.index, self._take_fd(), ring.running)
        return None

    def _do_SET_VRING_ERR(self, payload: VringDescriptor) -> Steps:
        ring = self._ring(Request.SET_VRING_ERR, payload.index)
        yield events.SetErr(ring.index, self._take_fd())
        return None

    def _do_SET_VRING_ENABLE(self, payload: VringState) -> Steps:
        # QEMU sends it before SET_FEATURES, so nothing that was negotiated can be asked for.
        ring = self._ring(Request.SET_VRING_ENABLE, payload.index)
        if payload.num > 1:
            raise PeerError(f"SET_VRING_ENABLE: {payload.num} for queue {ring.index}; 0 or 1")
        yield from self._enable(ring, bool(payload.num))
        return None

    # ---- the parts of these ----------------------------------------------------------------------

    def _ring(self, request: Request, index: int) -> Ring:
        """Return the queue, if it exists and the message may come in its state."""
        if index >= len(self.rings):
            raise PeerError(
                f"{request.name}: queue {index:#x}; there are {len(self.rings)}, from 0"
            )
        ring = self.rings[index]
        if (ring.state, request) not in RING_STATES:
            raise PeerError(
                f"{request.name}: queue {index} is {ring.state.value}; GET_VRING_BASE stops it"
            )
        return ring

    def _enable(self, ring: Ring, enabled: bool) -> Steps:
        if ring.enabled != enabled:
            ring.enabled = enabled
            if ring.running:
                yield events.EnableQueue(ring.index, enabled)
                yield events.Kick(ring.index)
        return None

    def _run(self, ring: Ring, queue: QueueAddresses) -> Steps:
        yield events.StartQueue(ring.index, queue)
        ring.running = True
        yield events.EnableQueue(ring.index, ring.enabled)
        yield events.Kick(ring.index)
        return None

    def _pause(self) -> Steps:
        """Stop the queues that run; their state stays: they are to go on where they were."""
        for ring in self.rings:
            if ring.running:
                ring.running = False
                ring.base = yield events.StopQueue(ring.index)
        return None

    def _stop(self, ring: Ring) -> Steps:
        if ring.running:
            ring.running = False
            ring.base = yield events.StopQueue(ring.index)
        ring.address = None
        yield events.DropKick(ring.index)
        return None

    def _reset(self) -> Steps:
        """Reset the device; memory, calls and what was negotiated of the protocol stay.

        QEMU resets a device that it has set up, and sets up only the queues anew.
        """
        for ring in self.rings:
            yield from self._stop(ring)
            ring.state = RingState.STOPPED
            ring.base = 0
        yield events.Reset()
        self.features = None
        self.status = 0
        return None

    def _located(self, ring: Ring, request: Request) -> QueueAddresses:
        try:
            return self._locate(ring)
        except PeerError as error:
            raise PeerError(f"{request_name(request)}: queue {ring.index}: {error}") from None

    def _locate(self, ring: Ring) -> QueueAddresses:
        """Translate where the ring lies; start and length are checked in one region."""
        if self.features is None:
            raise PeerError("no features were chosen; SET_FEATURES comes first")
        if not ring.size:
            raise PeerError("it has no size; SET_VRING_NUM comes first")
        if ring.address is None:
            raise PeerError("it has no addresses; SET_VRING_ADDR comes first")
        # Spec: Virtio 1.3, "Split Virtqueues": the sizes of the parts; the 2 bytes at the end of
        # both rings exist only with EVENT_IDX.
        event = 2 if self.features & Features.EVENT_IDX else 0
        address, n = ring.address, ring.size
        return QueueAddresses(
            size=n,
            desc_gpa=self._gpa(address.desc_user_addr, 16 * n, "descriptor table"),
            avail_gpa=self._gpa(address.avail_user_addr, 4 + 2 * n + event, "available ring"),
            used_gpa=self._gpa(address.used_user_addr, 4 + 8 * n + event, "used ring"),
            base=ring.base,
        )

    def _gpa(self, user_addr: int, n: int, what: str) -> int:
        for region in self.regions:
            offset = user_addr - region.user_addr
            if 0 <= offset <= region.size - n:
                return region.guest_addr + offset
        raise PeerError(
            f"its {what}, {n:#x} bytes at user address {user_addr:#x}, lies in none of the "
            f"{len(self.regions)} regions"
        )
