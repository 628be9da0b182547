# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The device's side of a split virtqueue, a burst at a time.

Spec: Virtio 1.3, "Split Virtqueues".

All of ring and buffers belongs to a hostile guest.  Each word of it is read once into a local,
checked, and used from there; chains are bounded by the ring's size; a ring that can't be followed
gets an error, is touched no more, and its device stops.  Nothing here blocks or raises.

Preconditions of the raw parts: `Vring.desc`, `avail` and `used` each lie whole in one region, whose
mapping the ring keeps by views of it; ``memory`` outlives the ring.  `Ring._place` sees to both.
A VMM may take that region away: each call from outside begins with `Ring._reach`, and no memory
changes until it returns.

Work is done in stages over small batches, so that the cache lines of later frames are on their way
while earlier ones are handled: heads, then descriptors, then headers.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_ETH_HLEN, VNIC_FRAME_MAX, VNIC_HDR_F_NEEDS_CSUM,
    VNIC_IOV_MAX,
    VNIC_MEMORY_CAPSULE, VNIC_READ, VNIC_RX_RING_CAPSULE, VNIC_WRITE, iovec, vnic_burst,
    vnic_cursor, vnic_cursor_advance, vnic_fence, vnic_frame, vnic_gather, vnic_hdr_check,
    vnic_hdr_is_plain, vnic_hdr_needs, vnic_load16, vnic_load64, vnic_load_acquire16, vnic_memory,
    vnic_prefetch, vnic_prefetch_write, vnic_rx_ring, vnic_store16, vnic_store_release16,
    vnic_translate, vnic_translate_segments,
)

cdef enum:
    VIRTQ_DESC_F_NEXT = 1
    VIRTQ_DESC_F_WRITE = 2
    VIRTQ_DESC_F_INDIRECT = 4
    VIRTQ_USED_F_NO_NOTIFY = 1
    VIRTQ_AVAIL_F_NO_INTERRUPT = 1
    SIZE_MAX = 32768     # Spec: "Split Virtqueues"
    BATCH = 32           # frames between whose stages lines have time to arrive
    PARK_AGAIN = 16384   # avail_event is behind for 65536 entries; well before that it is moved on
    RELEASE_GIL = 32     # buffers; below, releasing the GIL costs more than it gives
    LEN_MAX = 1 << 30    # a buffer's length as we count it: no frame needs a hundredth

cdef enum RingError:
    FINE
    AVAIL_JUMPED
    HEAD_RANGE
    NEXT_RANGE
    CHAIN_LOOPS
    CHAIN_LONG
    NOT_MAPPED
    DIRECTION
    INDIRECT_OFF
    INDIRECT_NEXT
    INDIRECT_NESTED
    INDIRECT_SIZE
    BUFFER_SMALL

REASONS = {
    AVAIL_JUMPED: "avail idx {0} went back, or is more than the ring's {1} entries ahead",
    HEAD_RANGE: "avail entry {0} is no descriptor of {1}",
    NEXT_RANGE: "descriptor chain goes on at {0}, of {1} descriptors",
    CHAIN_LOOPS: "descriptor chain at {0} has more than the ring's {1} descriptors: it loops",
    CHAIN_LONG: "descriptor chain at {0} has more than {1} segments",
    NOT_MAPPED: "buffer at {0:#x}, {1:#x} bytes, is not all in memory that allows it",
    DIRECTION: "descriptor at {0:#x}, {1:#x} bytes: device-writable where it must be readable, or the reverse",
    INDIRECT_OFF: "indirect descriptor at {0:#x}: the feature was not negotiated",
    INDIRECT_NEXT: "indirect descriptor at {0:#x} also has NEXT",
    INDIRECT_NESTED: "indirect table at {0:#x} holds an indirect descriptor",
    INDIRECT_SIZE: "indirect table at {0:#x} has {1:#x} bytes: not a multiple of 16, or too many",
    BUFFER_SMALL: "receive buffer of {0} bytes can't hold the {1}-byte virtio-net header",
}

COUNTERS = {
    "tx_frames": "frames that the link took from the guest",
    "tx_bytes": "bytes of those, without virtio-net headers",
    "tx_drop_bad_header": "frames whose virtio-net header makes no sense, or asks for what was not negotiated",
    "tx_drop_too_long": "frames of more bytes or segments than any frame may have",
    "tx_drop_runt": "chains shorter than the virtio-net header and an Ethernet header",
}

cdef struct Desc:
    uint64_t addr_gpa
    uint64_t rest  # len, flags and next, in one word so that they are read at once

cdef struct Vring:
    vnic_memory *memory
    uint64_t desc_gpa
    uint64_t avail_gpa
    uint64_t used_gpa
    Desc *desc
    uint16_t *avail       # flags, idx, ring[size], used_event
    uint16_t *used        # flags, idx, {id, len}[size] of 32 bits each, avail_event
    uint32_t size
    uint32_t header_len
    uint16_t next_avail   # the next entry to look at
    uint16_t done_avail   # the next entry whose chain is not yet used: where the queue may go on
    uint16_t seen_avail   # avail idx, as last read
    uint16_t next_used    # the next used entry to write
    uint16_t shown_used   # used idx, as last published
    uint16_t parked       # avail_event, as last written
    bint polled           # notifications are suppressed
    bint event_idx
    bint indirect
    bint lost             # its memory was taken away: the pointers are stale
    RingError error
    uint64_t error_a
    uint64_t error_b


cdef inline void fail(Vring *v, RingError error, uint64_t a, uint64_t b) noexcept nogil:
    if v.error == FINE:
        v.error = error
        v.error_a = a
        v.error_b = b


cdef inline bint in_place(Vring *v) noexcept nogil:
    """Whether each part of the ring is mapped where it was."""
    return vnic_translate(v.memory, v.desc_gpa, 16 * v.size, VNIC_READ) == v.desc \
        and vnic_translate(v.memory, v.avail_gpa, 6 + 2 * v.size, VNIC_READ) == v.avail \
        and vnic_translate(v.memory, v.used_gpa, 6 + 8 * v.size, VNIC_WRITE) == v.used


# ---- the avail ring ----------------------------------------------------------------------------

cdef inline bint look(Vring *v) noexcept nogil:
    """Read the avail index anew; whether it has moved, in whatever way."""
    # Acquire: the entries and descriptors behind the index must not be read before it.
    cdef uint16_t idx = vnic_load_acquire16(v.avail + 1), ahead
    if idx == v.seen_avail:
        return False
    ahead = idx - v.done_avail
    if ahead > v.size or ahead < <uint16_t>(v.seen_avail - v.done_avail):
        fail(v, AVAIL_JUMPED, idx, v.size)
    else:
        v.seen_avail = idx
    return True


cdef inline uint32_t available(Vring *v) noexcept nogil:
    """How many entries there are to look at; the index is read again only when all were seen."""
    if v.error == FINE and v.seen_avail == v.next_avail:
        look(v)
    if v.error != FINE:
        return 0
    return <uint16_t>(v.seen_avail - v.next_avail)


cdef inline uint32_t read_heads(Vring *v, uint32_t n, uint16_t *heads) noexcept nogil:
    """Read up to n entries; have their descriptors fetched, and those of as many behind them."""
    cdef uint32_t i, ahead
    cdef uint16_t head
    for i in range(n):
        head = vnic_load16(v.avail + 2 + ((v.next_avail + i) & (v.size - 1)))
        if head >= v.size:
            if i == 0:
                fail(v, HEAD_RANGE, head, v.size)
            return i
        vnic_prefetch(v.desc + head)
        heads[i] = head
    ahead = <uint16_t>(v.seen_avail - v.next_avail)
    if ahead > 2 * n:
        ahead = 2 * n
    for i in range(n, ahead):
        head = vnic_load16(v.avail + 2 + ((v.next_avail + i) & (v.size - 1)))
        vnic_prefetch(v.desc + (head & (v.size - 1)))
    return n


# ---- descriptor chains -------------------------------------------------------------------------

cdef inline int add_buffer(Vring *v, uint64_t gpa, uint64_t rest, bint write, iovec *iov,
                           uint32_t *n, uint32_t n_max, uint64_t *total) noexcept nogil:
    cdef uint32_t length = <uint32_t>rest
    cdef uint32_t flags = <uint32_t>(rest >> 32) & 0xFFFF
    cdef int result
    if ((flags & VIRTQ_DESC_F_WRITE) != 0) != write:
        fail(v, DIRECTION, gpa, length)
        return -1
    result = vnic_translate_segments(v.memory, gpa, length, VNIC_WRITE if write else VNIC_READ,
                                     iov, n, n_max)
    if result == -1:
        fail(v, NOT_MAPPED, gpa, length)
    total[0] += length
    return result


cdef int walk_indirect(Vring *v, uint64_t table_gpa, uint32_t table_len, bint write, iovec *iov,
                       uint32_t *n, uint32_t n_max, uint64_t *total) noexcept nogil:
    """Follow a chain in a table of its own.

    The specification bounds it by the ring's size; real drivers with short rings go beyond that
    (Linux needs 19 for a fragmented frame), so it is bounded by what one frame may have.
    """
    cdef uint32_t size = table_len // 16, left = size, at = 0, flags
    cdef Desc *table
    cdef uint64_t gpa, rest
    cdef int result
    if table_len == 0 or table_len % 16 != 0 or size > VNIC_IOV_MAX:
        fail(v, INDIRECT_SIZE, table_gpa, table_len)
        return -1
    table = <Desc *>vnic_translate(v.memory, table_gpa, table_len, VNIC_READ)
    if table == NULL:
        fail(v, NOT_MAPPED, table_gpa, table_len)
        return -1
    while True:
        if left == 0:
            fail(v, CHAIN_LOOPS, table_gpa, size)
            return -1
        left -= 1
        gpa = vnic_load64(&table[at].addr_gpa)
        rest = vnic_load64(&table[at].rest)
        flags = <uint32_t>(rest >> 32) & 0xFFFF
        if flags & VIRTQ_DESC_F_INDIRECT:
            fail(v, INDIRECT_NESTED, table_gpa, 0)
            return -1
        result = add_buffer(v, gpa, rest, write, iov, n, n_max, total)
        if result != 0:
            return result
        if not flags & VIRTQ_DESC_F_NEXT:
            return 0
        at = <uint32_t>(rest >> 48)
        if at >= size:
            fail(v, NEXT_RANGE, at, size)
            return -1


cdef int walk(Vring *v, uint16_t head, bint write, iovec *iov, uint32_t *n, uint32_t n_max,
              uint64_t *total) noexcept nogil:
    """Append a chain's buffers to iov[*n].

    0; -1 where the ring can't be followed (its error says why); -2 where iov is too short.
    """
    cdef uint32_t left = v.size, at = head, flags
    cdef uint64_t gpa, rest
    cdef int result
    total[0] = 0
    while True:
        if left == 0:
            fail(v, CHAIN_LOOPS, head, v.size)
            return -1
        left -= 1
        # The driver may change them at any time: once each, and both before any use.
        gpa = vnic_load64(&v.desc[at].addr_gpa)
        rest = vnic_load64(&v.desc[at].rest)
        flags = <uint32_t>(rest >> 32) & 0xFFFF
        if flags & VIRTQ_DESC_F_INDIRECT:
            if not v.indirect:
                fail(v, INDIRECT_OFF, gpa, 0)
                return -1
            if flags & VIRTQ_DESC_F_NEXT:
                fail(v, INDIRECT_NEXT, gpa, 0)
                return -1
            return walk_indirect(v, gpa, <uint32_t>rest, write, iov, n, n_max, total)
        result = add_buffer(v, gpa, rest, write, iov, n, n_max, total)
        if result != 0:
            return result
        if not flags & VIRTQ_DESC_F_NEXT:
            return 0
        at = <uint32_t>(rest >> 48)
        if at >= v.size:
            fail(v, NEXT_RANGE, at, v.size)
            return -1


# ---- the used ring -----------------------------------------------------------------------------

cdef inline void put_used(Vring *v, uint16_t at, uint32_t head, uint32_t length) noexcept nogil:
    cdef uint64_t entry = head | <uint64_t>length << 32
    memcpy(v.used + 2 + 4 * <size_t>(at & (v.size - 1)), &entry, 8)


cdef bint publish(Vring *v) noexcept nogil:
    """Show the driver what was used since the last time; whether it wants an interrupt for it."""
    cdef uint16_t old = v.shown_used, new = v.next_used, event
    if old == new:
        return False
    # Release: entries, and the bytes in the buffers, before the index that shows them.
    vnic_store_release16(v.used + 1, new)
    v.shown_used = new
    # The index before the look at whether to interrupt: else the driver, enabling interrupts in
    # between, would see neither the entries nor an interrupt.
    vnic_fence()
    if v.event_idx:
        event = vnic_load16(v.avail + 2 + v.size)
        return <uint16_t>(new - event - 1) < <uint16_t>(new - old)
    return not vnic_load16(v.avail) & VIRTQ_AVAIL_F_NO_INTERRUPT


# ---- notifications by the driver ---------------------------------------------------------------

cdef inline uint16_t *avail_event(Vring *v) noexcept nogil:
    return v.used + 2 + 4 * v.size


cdef void park(Vring *v) noexcept nogil:
    """Ask the driver not to notify: the ring is polled."""
    if v.event_idx:
        # The flag is ignored then; an event just behind us is 65535 entries away.
        v.parked = v.seen_avail - 1
        vnic_store16(avail_event(v), v.parked)
    elif not v.polled:
        vnic_store16(v.used, VIRTQ_USED_F_NO_NOTIFY)
    v.polled = True


cdef bint arm(Vring *v) noexcept nogil:
    """Ask the driver to notify of more than was seen, then look once more; whether there is."""
    if v.error != FINE:
        return False
    if v.event_idx:
        vnic_store16(avail_event(v), v.seen_avail)
    elif v.polled:
        vnic_store16(v.used, 0)
    v.polled = False
    # The request before the look: else an entry made in between would come with no notification.
    vnic_fence()
    return vnic_load16(v.avail + 1) != v.seen_avail


cdef class Ring:
    """What the two directions share.  One is made each time the queue is started."""

    cdef Vring v
    cdef object memory
    cdef object queue
    cdef tuple views  # of the region behind each part: their mapping lives as long as the ring
    cdef bint found   # it was lost, and has not been looked at since

    def __init__(self, memory, queue, *, event_idx, indirect, header_len):
        """``queue`` is a `vnic.hookspecs.QueueAddresses`.

        Raises: PeerError, for a size that can't be, and parts that are misaligned or not whole in
        one region of memory.
        """
        from vnic.errors import PeerError

        cdef Vring *v = &self.v
        size = queue.size
        if not 1 <= size <= SIZE_MAX or size & (size - 1):
            raise PeerError(f"queue size {size}: not a power of two up to {SIZE_MAX}")
        memset(v, 0, sizeof(Vring))
        v.memory = <vnic_memory *>PyCapsule_GetPointer(memory.capsule, VNIC_MEMORY_CAPSULE)
        v.size = size
        v.header_len = header_len
        v.next_avail = v.done_avail = v.seen_avail = queue.base
        v.next_used = v.shown_used = queue.base
        v.event_idx = event_idx
        v.indirect = indirect
        self.memory = memory
        self.queue = queue
        self._place()

    def _place(self):
        """Find the ring's parts in memory.

        Raises: PeerError, with nothing changed.
        """
        from vnic.errors import PeerError

        cdef Vring *v = &self.v
        cdef uint32_t size = v.size
        queue, memory = self.queue, self.memory
        views = []
        for part, gpa, align, n in (
            ("descriptor table", queue.desc_gpa, 16, 16 * size),
            ("avail ring", queue.avail_gpa, 2, 6 + 2 * size),
            ("used ring", queue.used_gpa, 4, 6 + 8 * size),
        ):
            if gpa % align:
                raise PeerError(f"{part} at {gpa:#x}: not aligned to {align}")
            if not memory.covers(gpa, n, part == "used ring"):
                raise PeerError(f"{part} at {gpa:#x}, {n:#x} bytes: not whole in one region")
            views.append(memory.view(gpa, n))
        desc = <Desc *>vnic_translate(v.memory, queue.desc_gpa, 16 * size, VNIC_READ)
        avail = <uint16_t *>vnic_translate(v.memory, queue.avail_gpa, 6 + 2 * size, VNIC_READ)
        used = <uint16_t *>vnic_translate(v.memory, queue.used_gpa, 6 + 8 * size, VNIC_WRITE)
        if <uintptr_t>desc % 16 or <uintptr_t>avail % 2 or <uintptr_t>used % 4:
            raise PeerError("queue: its region is mapped at an odd offset")
        v.desc_gpa, v.avail_gpa, v.used_gpa = queue.desc_gpa, queue.avail_gpa, queue.used_gpa
        v.desc, v.avail, v.used = desc, avail, used
        self.views = tuple(views)

    cdef bint _reach(self):
        """Whether the ring is in memory now; while it is not the queue rests."""
        if not self.v.lost and in_place(&self.v):
            return True
        return self._find()

    cdef bint _find(self):
        """Let go of the memory that was taken away, and see whether it has been given back.

        Perhaps it is elsewhere of ours then; all of it is looked at anew.
        """
        from vnic.errors import PeerError

        self.v.lost = True
        self.views = ()
        try:
            self._place()
        except PeerError:
            return False
        self.v.lost = False
        self.found = True
        return True

    @property
    def base(self) -> int:
        """The avail index where the queue may go on: chains before it are used and shown."""
        return self.v.done_avail

    @property
    def error(self) -> str | None:
        """Why the ring can't be followed any more; None while it can."""
        if self.v.error == FINE:
            return None
        return REASONS[self.v.error].format(self.v.error_a, self.v.error_b)

    def grown(self) -> bool:
        """Whether the driver has made more available since the last look, which this is, too.

        Or has broken the ring: whoever goes on with it is told.
        """
        if self.v.error != FINE or not self._reach():
            return False
        found, self.found = self.found, False
        return look(&self.v) or found

    def park(self):
        """Ask the driver not to notify, while the ring is polled."""
        cdef Vring *v = &self.v
        if v.error != FINE or not self._reach():
            return
        if not v.polled or (v.event_idx and <uint16_t>(v.seen_avail - v.parked) > PARK_AGAIN):
            park(v)

    def arm(self) -> bool:
        """Ask to be notified of more than was seen, and look once more: whether there is."""
        return self._reach() and (arm(&self.v) or self.found)


include "tx_kernel.pxi"
include "rx_kernel.pxi"
