"""Descriptors into frames.  Part of ring_kernel.pyx."""

# One frame, while its descriptors are being collected.
cdef struct Collected:
    Contexts contexts          # as they were when it began
    uint64_t first             # the second word of its first data descriptor
    uint64_t last              # and of its last
    uint32_t first_iov
    uint32_t length
    bint started
    bint failed
    Drop drop


cdef void parse_frames(TxRing r, vnic_burst *b) noexcept nogil:
    cdef Desc *desc = ring_of(&r.w)
    cdef Contexts contexts = r.contexts
    cdef Collected c
    cdef uint32_t at = r.w.head, i
    cdef uint64_t dst
    cdef bint whole
    if desc == NULL:
        return
    while b.n < b.n_max and b.n < VNIC_BURST_MAX and at != r.w.tail:
        c.first_iov = b.n_iov
        whole = collect(r, b, desc, &at, &contexts, &c)
        if not whole:
            if c.started:
                # The rest of the frame will come; unless there is no room for it in the ring.
                if b.n == 0 and between(&r.w, r.w.head, r.w.tail) == r.w.size - 1:
                    r.n_drops[TOO_LONG] += 1
                    drop(r, at, &contexts)
            elif b.n == 0:
                drop(r, at, &contexts)  # contexts, and nothing behind them yet
            b.n_iov = c.first_iov
            break
        if c.drop == KEPT:
            c.drop = finish(r, b, &c)
        if c.drop == N_DROPS:  # the burst has no room for its segments
            b.n_iov = c.first_iov
            break
        if c.drop != KEPT:
            b.n_iov = c.first_iov
            if b.n != 0:
                break  # it will be the oldest next time
            r.n_drops[c.drop] += 1
            r.counts[TSCTFC] += c.failed
            drop(r, at, &contexts)
            continue
        r.parsed[b.n].end = at
        r.parsed[b.n].contexts = contexts
        r.parsed[b.n].failed = c.failed
        vnic_prefetch(b.iov[b.frames[b.n].first].iov_base)
        b.n += 1
    for i in range(b.n):
        dst = 0
        if b.iov[b.frames[i].first].iov_len >= 6:
            memcpy(&dst, b.iov[b.frames[i].first].iov_base, 6)
        else:
            gather_start(b, &b.frames[i], <uint8_t *>&dst, 6)
        r.parsed[i].kind = destination(dst)


cdef inline void drop(TxRing r, uint32_t end, const Contexts *contexts) noexcept nogil:
    """Consume the oldest descriptors without sending anything."""
    r.contexts = contexts[0]
    consume(r, end)


cdef bint collect(TxRing r, vnic_burst *b, const Desc *desc, uint32_t *at, Contexts *contexts,
                  Collected *c) noexcept nogil:
    """Walk the descriptors of one frame, its buffers behind a free segment; whether it is whole."""
    cdef uint64_t gpa, rest
    cdef uint32_t command, kind, length
    cdef int result
    c.started = c.failed = False
    c.drop = KEPT
    c.length = 0
    if b.n_iov + 3 > b.n_iov_max:
        c.drop = N_DROPS
    b.n_iov += 1  # for scratch
    while at[0] != r.w.tail:
        gpa = vnic_load64(&desc[at[0]].addr_gpa)
        rest = vnic_load64(&desc[at[0]].rest)
        at[0] = after(&r.w, at[0])
        command = <uint32_t>(rest >> 24) & 0xFF
        length = <uint32_t>rest & 0xFFFF
        if command & CMD_DEXT:
            kind = <uint32_t>(rest >> 20) & 0xF
            if kind == DTYP_CONTEXT:
                # In the middle of a frame it is for the next one: this one's is in `c`.
                if command & CMD_TSE:
                    contexts.tso[0] = gpa
                    contexts.tso[1] = rest
                else:
                    contexts.csum[0] = gpa
                    contexts.csum[1] = rest
                continue
            if kind != DTYP_DATA:
                continue
            length = <uint32_t>rest & 0xFFFFF
        if not c.started:
            c.started = True
            c.first = rest
            c.contexts = contexts[0]
        c.last = rest
        # Spec: "Transmit Descriptor": one with a null address or no length has no data.
        if gpa != 0 and length != 0 and c.drop == KEPT:
            c.length += length
            result = vnic_translate_segments(r.w.memory, gpa, length, VNIC_READ, b.iov, &b.n_iov,
                                             b.n_iov_max - 1)
            if result == -1:
                c.drop = BAD_BUFFER
            elif c.length > LEN_MAX or b.n_iov - c.first_iov > VNIC_IOV_MAX - 2:
                c.drop = TOO_LONG
            elif result == -2:
                c.drop = TOO_LONG if b.n == 0 else N_DROPS
        if command & CMD_EOP:
            return True
    return False
