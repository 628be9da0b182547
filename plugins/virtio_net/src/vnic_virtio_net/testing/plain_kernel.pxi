"""The plain case of the bulk path, for speed: part of driver_kernel.pyx.

Plain is a chain of one descriptor of the ring's own table, and, received, a frame in one buffer
with a header of zeroes.  Each loop goes on as long as that is so and nothing is wrong.  What stops
it is looked at again, judged, and dealt with by the methods that know all cases.

A queue's fields are copied to locals: after each store to the ring they would be loaded again.
"""


cdef inline void dirty(char *start) noexcept nogil:
    """A driver writes each frame's header anew, and with it the line that the frame's start is in:
    the device finds it dirty, in this core's cache.
    """
    vnic_store64(<uint64_t *>start, vnic_load64(<uint64_t *>start))


cdef void send_plain(TxQueue q, uint32_t n) noexcept nogil:
    """Post the next n slots.  There are as many, and as many descriptors."""
    cdef uint32_t mask = q.mask, at = q.avail_idx, head = q.next_free, pool_at = q.pool_head
    cdef uint32_t i, slot, length
    cdef uint64_t *desc = q.desc
    cdef uint16_t *avail = q.avail + 2
    cdef uint16_t *posted = q.posted
    cdef uint16_t *link = q.link
    cdef uint32_t *pool = q.pool
    cdef uint32_t *lens = q.lens
    cdef Chain *chains = q.chains
    cdef char *slots = q.slots
    cdef uint64_t gpa = q.slots_gpa, n_bytes = 0
    cdef size_t stride = q.stride
    cdef bint in_order = q.in_order
    for i in range(n):
        slot = pool[pool_at & mask]
        length = lens[slot]
        vnic_prefetch_write(slots + pool[(pool_at + 8) & mask] * stride)
        dirty(slots + slot * stride)
        vnic_store64(&desc[2 * head], gpa + slot * stride)
        vnic_store64(&desc[2 * head + 1], length)
        chains[head].slot = slot
        chains[head].capacity = 0
        chains[head].at = at
        chains[head].n_desc = 1
        chains[head].state = POSTED
        posted[at & mask] = <uint16_t>head
        vnic_store16(&avail[at & mask], <uint16_t>head)
        head = (head + 1) & mask if in_order else link[head]
        n_bytes += length
        pool_at += 1
        at += 1
    q.next_free = head
    q.n_free -= n
    q.avail_idx = at
    q.pool_head = pool_at
    q.n_bytes += n_bytes - n * <uint64_t>q.hdr_len


cdef uint32_t reclaim_plain(TxQueue q, uint32_t n) noexcept nogil:
    """Take back those of the next n used chains that are plain; return how many were."""
    cdef uint32_t mask = q.mask, published = q.published_idx, pool_at = q.pool_tail
    cdef uint32_t i = 0, head, slot, next_free = q.next_free
    cdef uint16_t used_idx = q.used_idx
    cdef uint32_t *used = <uint32_t *>(q.used + 2)
    cdef uint32_t *entry
    cdef uint32_t *pool = q.pool
    cdef uint16_t *posted = q.posted
    cdef uint16_t *link = q.link
    cdef uint64_t *sums = q.sums
    cdef Chain *chains = q.chains
    cdef bint in_order = q.in_order
    if q.batch != 0:
        return 0
    while i < n:
        entry = &used[2 * (used_idx & mask)]
        head = vnic_load32(&entry[0])
        if (head > mask or vnic_load32(&entry[1]) != 0
                or chains[head].state != POSTED or chains[head].n_desc != 1
                or <int32_t>(published - chains[head].at) <= 0):
            break
        slot = chains[head].slot
        if sums[slot] != 0:
            break
        if in_order:
            if posted[used_idx & mask] != head:
                break
        else:
            link[head] = <uint16_t>next_free
            next_free = head
        chains[head].state = USED
        pool[pool_at & mask] = slot
        pool_at += 1
        used_idx += 1
        i += 1
    q.next_free = next_free
    q.n_free += i
    q.pool_tail = pool_at
    q.used_idx = used_idx
    return i


cdef uint32_t recv_plain(RxQueue q, uint32_t n) noexcept nogil:
    """Take those of the next n used chains that are plain, and post their slots again.

    Returns how many were; each is a frame.
    """
    cdef uint32_t mask = q.mask, published = q.published_idx, capacity = q.capacity
    cdef uint32_t i = 0, head, slot, size, next_free = q.next_free, at = q.avail_idx
    cdef uint16_t used_idx = q.used_idx
    cdef uint64_t *desc = q.desc
    cdef uint16_t *avail = q.avail + 2
    cdef uint32_t *used = <uint32_t *>(q.used + 2)
    cdef uint32_t *entry
    cdef uint16_t *posted = q.posted
    cdef Chain *chains = q.chains
    cdef char *start
    cdef char *slots = q.slots
    cdef uint64_t gpa = q.slots_gpa, n_bytes = 0, touched = 0
    cdef size_t stride = q.stride
    cdef bint in_order = q.in_order
    if q.n_cuts != 1 or q.indirect or q.batch != 0 or q.hdr_len != HDR_LEN:
        return 0
    while i < n:
        entry = &used[2 * (used_idx & mask)]
        head = vnic_load32(&entry[0])
        size = vnic_load32(&entry[1])
        if (head > mask or size <= HDR_LEN or size > capacity or chains[head].state != POSTED
                or <int32_t>(published - chains[head].at) <= 0):
            break
        slot = chains[head].slot
        start = slots + slot * stride
        if vnic_load64(<uint64_t *>start) != 0 or vnic_load32(<uint32_t *>start + 2) >> 16 != 1:
            break
        if in_order:
            if posted[used_idx & mask] != head:
                break
            chains[head].state = USED
            head = next_free
            next_free = (head + 1) & mask
        # Without IN_ORDER the descriptor that is free now is the next to be used.
        touched ^= vnic_load64(<uint64_t *>(start + HDR_LEN))
        vnic_store64(&desc[2 * head], gpa + slot * stride)
        vnic_store64(&desc[2 * head + 1], capacity | <uint64_t>VIRTQ_DESC_F_WRITE << 32)
        chains[head].slot = slot
        chains[head].capacity = capacity
        chains[head].at = at
        chains[head].n_desc = 1
        chains[head].state = POSTED
        posted[at & mask] = <uint16_t>head
        vnic_store16(&avail[at & mask], <uint16_t>head)
        n_bytes += size - HDR_LEN
        used_idx += 1
        at += 1
        i += 1
    q.touched[0] ^= touched
    q.next_free = next_free
    q.used_idx = used_idx
    q.avail_idx = at
    q.n_bytes += n_bytes
    return i
