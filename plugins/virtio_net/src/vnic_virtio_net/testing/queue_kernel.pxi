"""One split virtqueue: part of driver_kernel.pyx, which says what its preconditions are.

In a file of its own to be read by itself, and included to be compiled as one: the calls between
a queue and its direction are made for each frame.
"""

cdef enum:
    VIRTQ_DESC_F_NEXT = 1
    VIRTQ_DESC_F_WRITE = 2
    VIRTQ_DESC_F_INDIRECT = 4
    VIRTQ_AVAIL_F_NO_INTERRUPT = 1
    VIRTQ_USED_F_NO_NOTIFY = 1

    HDR_LEN = 12
    GUARD_LEN = 8
    AHEAD = 32       # used entries looked at before the first is taken: enough to hide a far line
    HOLD_GIL = 256   # frames: below that, giving the GIL away costs more than it's worth

cdef const char *GUARD = b"\xde\xad\xbe\xef\xfe\xed\xfa\xce"

cdef enum State:
    NEVER
    POSTED
    USED

cdef enum Fault:
    BAD_INDEX = -1
    NEVER_POSTED = -2
    USED_TWICE = -3
    OUT_OF_ORDER = -4
    LEN_TOO_LONG = -5
    LEN_TOO_SHORT = -6
    BAD_NUM_BUFFERS = -7
    BUFFERS_MISSING = -8
    NOT_FILLED = -9
    BAD_HEADER = -10
    GUARD_GONE = -11
    SENT_CHANGED = -12

FAULTS = {
    BAD_INDEX: "used idx went from {at} to {value}, with {posted} chains posted",
    NEVER_POSTED: "used entry {at} has id {value}, which was never posted",
    USED_TWICE: "used entry {at} has id {value}, which was used before and isn't posted now",
    OUT_OF_ORDER: "used entry {at} has id {value}, out of order although IN_ORDER was negotiated",
    LEN_TOO_LONG: "used entry {at} has len {value}, more than the device may write of its buffer",
    LEN_TOO_SHORT: "used entry {at} has len {value}, which a header and a frame don't fit in",
    BAD_NUM_BUFFERS: "frame at used entry {at} has num_buffers {value}",
    BUFFERS_MISSING: "frame at used entry {at} has num_buffers {value}, more than are used",
    NOT_FILLED: "used entry {at} has len {value}: only a frame's last buffer may be left unfilled",
    BAD_HEADER: "frame at used entry {at} has a header that was not negotiated or makes no sense",
    GUARD_GONE: "used entry {at}: the device wrote beyond a descriptor of its buffer",
    SENT_CHANGED: "used entry {at}: the device wrote to a frame that it was sent",
}


cdef struct Chain:  # by its head descriptor
    uint32_t slot
    uint32_t capacity  # bytes that the device may write
    uint32_t at        # avail index that it was posted with
    uint16_t n_desc    # descriptors of the ring's table
    uint16_t state


cdef class Queue:
    """What both directions share.  ``n_slots`` buffers, each cut into ``cuts`` bytes."""

    cdef readonly str name
    cdef readonly uint32_t size
    cdef readonly uint32_t n_slots
    cdef readonly uint32_t capacity
    cdef readonly uint64_t desc_gpa
    cdef readonly uint64_t avail_gpa
    cdef readonly uint64_t used_gpa
    cdef readonly bint armed
    cdef readonly uint64_t n_frames
    cdef readonly uint64_t n_bytes
    cdef uint64_t features
    cdef uint32_t hdr_len
    cdef bint in_order
    cdef bint event_idx
    cdef bint indirect

    cdef uint64_t *desc
    cdef uint16_t *avail
    cdef uint16_t *used
    cdef uint32_t mask
    cdef uint32_t avail_idx      # the next entry's; the ring has its lower half, as of the next
    cdef uint32_t published_idx  # what the device may see of it
    cdef uint16_t judged_idx     # up to where it was decided whether to kick
    cdef uint16_t used_idx       # the next to be taken
    cdef uint16_t seen_idx       # what the device's index was when it was read last
    cdef uint32_t batch          # entries to come of an IN_ORDER batch
    cdef uint32_t batch_len      # the len of its last
    cdef uint32_t n_free         # descriptors
    cdef uint32_t next_free
    cdef uint16_t *link          # from a free descriptor to the next
    cdef uint16_t *posted        # heads, by avail index
    cdef Chain *chains

    cdef char *slots
    cdef uint64_t slots_gpa
    cdef size_t stride
    cdef uint64_t *tables        # of indirect descriptors, one a slot
    cdef uint64_t tables_gpa
    cdef uint32_t n_cuts
    cdef uint32_t *cut_len
    cdef uint32_t *cut_at
    cdef uint32_t frame_at       # where in a slot a frame starts

    cdef int fault
    cdef uint32_t fault_at
    cdef uint32_t fault_value
    cdef list keep

    def __init__(self, str name, host, uint32_t size, cuts, uint32_t n_slots, bint indirect,
                 features):
        cdef uint32_t i, at = 0
        if not 0 < size <= 32768 or size & (size - 1):
            raise ValueError(f"{name}: a queue of {size}; a power of two up to 32768 is allowed")
        if not 0 < len(cuts) <= size or min(cuts) < 1:
            raise ValueError(f"{name}: buffers cut into {cuts}; 1 to {size} cuts of 1 byte or more")
        if not 0 < n_slots <= (size if indirect else size // len(cuts)):
            raise ValueError(f"{name}: {n_slots} buffers of {len(cuts)} descriptors in {size}")
        self.name, self.size, self.mask, self.n_slots = name, size, size - 1, n_slots
        self.features, self.indirect = features, indirect
        self.in_order = Features.IN_ORDER in features
        self.event_idx = Features.EVENT_IDX in features
        self.hdr_len = 12 if features & (Features.VERSION_1 | Features.MRG_RXBUF) else 10
        self.keep = []

        self.desc = <uint64_t *>self._map(host, 16 * size, &self.desc_gpa)
        self.avail = <uint16_t *>self._map(host, 6 + 2 * size, &self.avail_gpa)
        self.used = <uint16_t *>self._map(host, 6 + 8 * size, &self.used_gpa)
        self.link = <uint16_t *>_calloc(size, sizeof(uint16_t))
        self.posted = <uint16_t *>_calloc(size, sizeof(uint16_t))
        self.chains = <Chain *>_calloc(size, sizeof(Chain))
        for i in range(size):
            self.link[i] = <uint16_t>((i + 1) & self.mask)
        self.n_free = size

        self.n_cuts, self.capacity = len(cuts), sum(cuts)
        self.cut_len = <uint32_t *>_calloc(self.n_cuts, sizeof(uint32_t))
        self.cut_at = <uint32_t *>_calloc(self.n_cuts, sizeof(uint32_t))
        for i in range(self.n_cuts):
            self.cut_len[i], self.cut_at[i] = cuts[i], at
            if sum(cuts[:i]) <= self.hdr_len < sum(cuts[: i + 1]):
                self.frame_at = at + self.hdr_len - <uint32_t>sum(cuts[:i])
            at = (at + self.cut_len[i] + GUARD_LEN + 7) & ~7u
        # An odd number of cache lines: with a power of two all slots would share a few cache sets.
        self.stride = ((at + 63) // 64 | 1) * 64
        self.slots = self._map(host, self.stride * n_slots, &self.slots_gpa)
        if indirect:
            self.tables = <uint64_t *>self._map(host, 16 * self.n_cuts * n_slots, &self.tables_gpa)
        for i in range(n_slots):
            for at in range(self.n_cuts):
                memcpy(self._slot(i) + self.cut_at[at] + self.cut_len[at], GUARD, GUARD_LEN)

    def __dealloc__(self):
        free(self.link)
        free(self.posted)
        free(self.chains)
        free(self.cut_len)
        free(self.cut_at)

    cdef char *_map(self, host, size_t n, uint64_t *gpa) except NULL:
        cdef uint8_t[::1] view
        gpa[0] = host.alloc(n, 64)
        held = host.memory.view(gpa[0], n)
        view = held
        self.keep.append(held)
        return <char *>&view[0]

    # ---- what the driver asks -------------------------------------------------------------------

    @property
    def n_posted(self) -> int:
        """Chains that are handed over and not taken back."""
        return <uint16_t>(self.published_idx - self.used_idx)

    @property
    def used_idx_now(self) -> int:
        """The device's index, as it is in the ring."""
        return vnic_load16(&self.used[1])

    @property
    def pending(self) -> bool:
        """Whether there are used chains to take."""
        return vnic_load16(&self.used[1]) != self.used_idx

    def kick_due(self) -> bool:
        """Whether the device wants to be told of what was published since the last call."""
        cdef uint16_t old = self.judged_idx, new = <uint16_t>self.published_idx, event
        if old == new:
            return False
        self.judged_idx = new
        # Our index must be visible before we read what the device wants.  It asks first and looks
        # at our index then; were both reads done early, the frame would wait for ever.
        vnic_fence()
        if self.event_idx:
            event = vnic_load16(&self.used[2 + 4 * self.size])
            return <uint16_t>(new - event - 1) < <uint16_t>(new - old)
        return not vnic_load16(&self.used[0]) & VIRTQ_USED_F_NO_NOTIFY

    def arm(self) -> bool:
        """Ask for an interrupt; True when something came meanwhile, that may have brought none."""
        self.armed = True
        if self.event_idx:
            vnic_store16(&self.avail[2 + self.size], self.used_idx)
        else:
            vnic_store16(&self.avail[0], 0)
        # What we ask must be visible before we look once more: the device publishes first and reads
        # it then, so one of us sees the other.
        vnic_fence()
        return vnic_load16(&self.used[1]) != self.used_idx

    def disarm(self):
        """Ask for no interrupts."""
        self.armed = False
        if not self.event_idx:
            vnic_store16(&self.avail[0], VIRTQ_AVAIL_F_NO_INTERRUPT)
        self.park()

    # ---- chains ---------------------------------------------------------------------------------

    @cython.final
    cdef void park(self) noexcept nogil:
        """With EVENT_IDX flags mean nothing; an event just behind us is 65535 entries away."""
        if self.event_idx and not self.armed:
            vnic_store16(&self.avail[2 + self.size], <uint16_t>(self.used_idx - 1))

    @cython.final
    cdef inline char *_slot(self, uint32_t slot) noexcept nogil:
        return self.slots + slot * self.stride

    @cython.final
    cdef inline uint32_t n_desc_of(self, uint32_t n) noexcept nogil:
        """Descriptors of the ring's table that a buffer of n bytes takes."""
        cdef uint32_t i = 0
        if self.indirect:
            return 1
        while n > self.cut_len[i]:
            n -= self.cut_len[i]
            i += 1
        return i + 1

    @cython.final
    cdef inline void post(self, uint32_t slot, uint32_t n, uint64_t flags) noexcept nogil:
        """Make a chain of a slot's first n bytes and enter it; `publish` hands it over.

        The caller has seen to it that there are descriptors, and that n isn't zero.
        """
        cdef uint64_t gpa = self.slots_gpa + slot * self.stride
        cdef uint64_t *table = self.desc
        cdef uint32_t head = self.next_free, at = head, after, i = 0, run, left = n
        cdef Chain *chain = &self.chains[head]
        if self.indirect:
            at = 0
            table = self.tables + 2 * <size_t>slot * self.n_cuts
        while True:
            run = min(left, self.cut_len[i])
            left -= run
            # IN_ORDER wants a table used from its start to its end, and round again.
            after = at + 1 if self.indirect else \
                ((at + 1) & self.mask if self.in_order else self.link[at])
            vnic_store64(&table[2 * at], gpa + self.cut_at[i])
            if left == 0:
                vnic_store64(&table[2 * at + 1], run | flags << 32)
                break
            vnic_store64(&table[2 * at + 1],
                         run | (flags | VIRTQ_DESC_F_NEXT) << 32 | <uint64_t>after << 48)
            at = after
            i += 1
        i += 1
        if self.indirect:
            gpa = self.tables_gpa + 16 * <size_t>slot * self.n_cuts
            vnic_store64(&self.desc[2 * head], gpa)
            vnic_store64(&self.desc[2 * head + 1], 16 * i | <uint64_t>VIRTQ_DESC_F_INDIRECT << 32)
            after = (head + 1) & self.mask if self.in_order else self.link[head]
            i = 1
        self.next_free = after
        self.n_free -= i
        chain.slot = slot
        chain.capacity = n if flags & VIRTQ_DESC_F_WRITE else 0
        chain.at = self.avail_idx
        chain.n_desc = <uint16_t>i
        chain.state = POSTED
        self.posted[self.avail_idx & self.mask] = <uint16_t>head
        vnic_store16(&self.avail[2 + (self.avail_idx & self.mask)], <uint16_t>head)
        self.avail_idx += 1

    @cython.final
    cdef inline void publish(self) noexcept nogil:
        # Descriptors and ring entries must be visible before the index that hands them over.
        vnic_store_release16(&self.avail[1], <uint16_t>self.avail_idx)
        self.published_idx = self.avail_idx

    @cython.final
    cdef inline bint is_posted(self, const Chain *chain) noexcept nogil:
        """Whether the device has it; it may be used already, and posted again for later."""
        return chain.state == POSTED and <int32_t>(self.published_idx - chain.at) > 0

    @cython.final
    cdef inline int look(self) noexcept nogil:
        """How many used chains there are to take, or a fault."""
        cdef uint16_t now
        if self.used_idx == self.seen_idx:
            # The index must be read before the entries that it covers, and what they tell of.
            now = vnic_load_acquire16(&self.used[1])
            if <uint16_t>(now - self.used_idx) > <uint16_t>(self.published_idx - self.used_idx):
                return self.fail(BAD_INDEX, now)
            self.seen_idx = now
        return <uint16_t>(self.seen_idx - self.used_idx)

    @cython.final
    cdef inline int take(self, uint32_t *slot, uint32_t *n) noexcept nogil:
        """Take the oldest used chain back: 1 and its slot and len; 0, none there; or a fault."""
        cdef int there = self.look()
        cdef uint32_t *entry = <uint32_t *>&self.used[2 + 4 * (self.used_idx & self.mask)]
        cdef uint32_t head = 0, i
        cdef Chain *chain
        if there <= 0:
            return there
        if self.batch == 0:
            head = vnic_load32(&entry[0])
            n[0] = vnic_load32(&entry[1])
            if head >= self.size or not self.is_posted(&self.chains[head]):
                return self.fail(
                    NEVER_POSTED if head >= self.size or self.chains[head].state == NEVER
                    else USED_TWICE, head)
        if self.in_order:
            # One entry may stand for a batch: its id is the last's, and those before it are taken
            # for used completely.  Spec: "In-order use of descriptors".
            if self.batch == 0:
                i = 0
                while self.posted[(self.used_idx + i) & self.mask] != head:
                    i += 1
                    if i == <uint32_t>there:
                        return self.fail(OUT_OF_ORDER, head)
                self.batch = i + 1
                self.batch_len = n[0]
            self.batch -= 1
            head = self.posted[self.used_idx & self.mask]
            n[0] = self.batch_len if self.batch == 0 else self.chains[head].capacity
        chain = &self.chains[head]
        if n[0] > chain.capacity:
            return self.fail(LEN_TOO_LONG, n[0])
        slot[0] = chain.slot
        chain.state = USED
        self.n_free += chain.n_desc
        if not self.in_order:
            i = head
            for _ in range(chain.n_desc - 1):
                i = self.link[i]
            self.link[i] = <uint16_t>self.next_free
            self.next_free = head
        self.used_idx += 1
        return 1

    # ---- bytes of a slot ------------------------------------------------------------------------

    @cython.final
    cdef void store(self, uint32_t slot, uint32_t at, const char *data, uint32_t n) noexcept nogil:
        cdef uint32_t i, run
        for i in range(self.n_cuts):
            if at < self.cut_len[i] and n != 0:
                run = min(n, self.cut_len[i] - at)
                memcpy(self._slot(slot) + self.cut_at[i] + at, data, run)
                data += run
                n -= run
                at = 0
            else:
                at -= min(at, self.cut_len[i])

    @cython.final
    cdef void load(self, uint32_t slot, uint32_t at, char *data, uint32_t n) noexcept nogil:
        cdef uint32_t i, run
        for i in range(self.n_cuts):
            if at < self.cut_len[i] and n != 0:
                run = min(n, self.cut_len[i] - at)
                memcpy(data, self._slot(slot) + self.cut_at[i] + at, run)
                data += run
                n -= run
                at = 0
            else:
                at -= min(at, self.cut_len[i])

    @cython.final
    cdef bint guarded(self, uint32_t slot) noexcept nogil:
        cdef uint32_t i
        for i in range(self.n_cuts):
            if memcmp(self._slot(slot) + self.cut_at[i] + self.cut_len[i], GUARD, GUARD_LEN) != 0:
                return False
        return True

    # ---- faults ---------------------------------------------------------------------------------

    @cython.final
    cdef int fail(self, int fault, uint32_t value) noexcept nogil:
        self.fault = fault
        self.fault_at = self.used_idx
        self.fault_value = value
        return fault

    @cython.final
    cdef int raise_fault(self) except -1:
        """Raise what was found, now and for ever: a device that failed once isn't trusted again."""
        if self.fault != 0:
            raise DriverError(f"{self.name}: " + FAULTS[self.fault].format(
                at=self.fault_at, value=self.fault_value, posted=self.n_posted))
        return 0


cdef void *_calloc(size_t n, size_t size) except NULL:
    cdef void *p = calloc(n, size)
    if p == NULL:
        raise MemoryError
    return p
