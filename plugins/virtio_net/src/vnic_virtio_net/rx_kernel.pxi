"""To the guest: the ring as a room's ring of buffers.  Part of ring_kernel.pyx."""


cdef class RxRing(Ring):
    """Buffers for frames to the guest.  `capsule` is what a `vnic.burst.Room` is made of."""

    cdef vnic_rx_ring verbs
    cdef readonly object capsule

    def __init__(self, memory, queue, *, event_idx, indirect, header_len, mergeable,
                 offloads):
        Ring.__init__(self, memory, queue, event_idx=event_idx, indirect=indirect,
                      header_len=header_len)
        self.verbs.ring = &self.v
        self.verbs.reserve = reserve
        self.verbs.commit = commit
        self.verbs.rollback = rollback
        self.verbs.accept = NULL
        self.verbs.offloads = offloads
        self.verbs.n_max = self.v.size
        self.verbs.header_len = header_len
        self.verbs.mergeable = mergeable
        self.capsule = PyCapsule_New(&self.verbs, VNIC_RX_RING_CAPSULE, NULL)

    def publish(self) -> bool:
        """Show the driver the frames that were delivered; whether to interrupt it."""
        return publish(&self.v)


cdef inline void fetch_buffer(Vring *v, const char *buffer) noexcept nogil:
    """Have a buffer's first lines fetched: that of the data to be written, that of a header which
    stands alone only to be compared (see ``put_header`` of room_kernel)."""
    cdef const char *data = buffer + v.header_len
    if <uintptr_t>data >> 6 != <uintptr_t>buffer >> 6:
        vnic_prefetch(buffer)
    vnic_prefetch_write(data)
    if <uintptr_t>data & 63:
        vnic_prefetch_write(data + 64)


cdef uint32_t reserve(void *ring, vnic_burst *b, uint32_t n) noexcept nogil:
    cdef Vring *v = <Vring *>ring
    cdef uint16_t heads[BATCH]
    cdef uint32_t done = 0, k, i, first
    cdef uint64_t total
    cdef vnic_frame *buffer
    cdef int result
    if v.lost or not in_place(v):
        return 0
    while done < n:
        k = available(v)
        if k > BATCH:
            k = BATCH
        if k > n - done:
            k = n - done
        k = read_heads(v, k, heads)
        if k == 0:
            return done
        for i in range(k):
            first = b.n_iov
            result = walk(v, heads[i], True, b.iov, &b.n_iov, b.n_iov_max, &total)
            if result == 0 and total < v.header_len:
                fail(v, BUFFER_SMALL, total, v.header_len)
                result = -1
            if result != 0:
                b.n_iov = first
                if result == -2 and first == 0:
                    fail(v, CHAIN_LONG, heads[i], b.n_iov_max)
                return done
            buffer = &b.frames[b.n]
            buffer.first = first
            buffer.count = b.n_iov - first
            buffer.len = <uint32_t>total if total < LEN_MAX else LEN_MAX
            buffer.token = heads[i]
            buffer.flags = 0
            if buffer.count:
                fetch_buffer(v, <char *>b.iov[first].iov_base)
            b.n += 1
            done += 1
            if v.next_avail % 8 == 0 or done == 1:  # eight used entries to a line
                vnic_prefetch_write(v.used + 2 + 4 * <size_t>(v.next_avail & (v.size - 1)))
            v.next_avail += 1
    return done


cdef void commit(void *ring, const vnic_frame *buffers, uint32_t n) noexcept nogil:
    cdef Vring *v = <Vring *>ring
    cdef uint32_t i
    for i in range(n):
        put_used(v, <uint16_t>(v.next_used + i), buffers[i].token, buffers[i].len)
    v.next_used += n
    v.done_avail += n


cdef void rollback(void *ring) noexcept nogil:
    cdef Vring *v = <Vring *>ring
    v.next_avail = v.done_avail
