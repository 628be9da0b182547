"""Descriptors into frames.  Part of ring_kernel.pyx.

Most frames are plain, and stand in runs: they are appended in one pass.  Any other is collected from
its descriptors, contexts among them, and made as these ask (`finish`).
"""

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
    cdef uint32_t at = r.w.head, n_contexts = 0
    if desc == NULL:
        return
    parse_plain(r, b, desc, &at, n_contexts)
    while at != r.w.tail and b.n < min(b.n_max, <uint32_t>VNIC_BURST_MAX) \
            and parse_any(r, b, desc, &at, &n_contexts):
        parse_plain(r, b, desc, &at, n_contexts)
    note_destinations(r, b)


cdef inline uint32_t plain_length(uint64_t rest) noexcept nogil:
    """The length of a frame whose one descriptor asks only that it be sent; 0 of any other."""
    cdef uint32_t asked = <uint32_t>(rest >> 24) & (CMD_EOP | CMD_IFCS | CMD_IC | CMD_DEXT | CMD_VLE)
    if asked == CMD_EOP | CMD_IFCS:
        return <uint32_t>rest & 0xFFFF
    if asked == CMD_EOP | CMD_IFCS | CMD_DEXT and rest >> 20 & 0xF == DTYP_DATA \
            and not rest >> 40 & (POPTS_IXSM | POPTS_TXSM):
        return <uint32_t>rest & 0xFFFFF
    return 0


cdef void parse_plain(TxRing r, vnic_burst *b, const Desc *desc, uint32_t *at,
                      uint32_t contexts) noexcept nogil:
    """Append frames while they are plain: one descriptor, one region, nothing to be done to them.

    `parse_any` reads the first that is not anew, and takes nothing from here.
    """
    cdef uint32_t next = at[0], n = b.n, n_iov = b.n_iov, length
    cdef uint32_t shortest = FRAME_MIN if r.pad else VNIC_ETH_HLEN
    cdef uint32_t end = n + min(between(&r.w, next, r.w.tail), b.n_iov_max - n_iov,
                                min(b.n_max, <uint32_t>VNIC_BURST_MAX) - n)
    cdef uint32_t size = r.w.size
    cdef uint64_t gpa
    cdef iovec *iov = b.iov
    cdef vnic_frame *frame
    cdef Parsed *parsed
    while n != end:
        gpa = vnic_load64(&desc[next].addr_gpa)
        length = plain_length(vnic_load64(&desc[next].rest))
        if gpa == 0 or length < shortest or length > VNIC_FRAME_MAX:
            break
        iov[n_iov].iov_base = vnic_translate(r.w.memory, gpa, length, VNIC_READ)
        if iov[n_iov].iov_base == NULL:
            break
        vnic_prefetch(iov[n_iov].iov_base)
        iov[n_iov].iov_len = length
        next = next + 1 if next + 1 < size else 0
        frame = &b.frames[n]
        frame.first = n_iov
        frame.count = 1
        frame.len = length
        frame.flags = 0
        memset(frame.hdr, 0, sizeof(frame.hdr))
        parsed = &r.parsed[n]
        parsed.end = next
        parsed.contexts = contexts
        parsed.header_len = 0
        parsed.failed = False
        n += 1
        n_iov += 1
    at[0] = next
    b.n = n
    b.n_iov = n_iov


cdef bint parse_any(TxRing r, vnic_burst *b, const Desc *desc, uint32_t *at,
                    uint32_t *n_contexts) noexcept nogil:
    """Append the frame that begins here, or drop it if it is the oldest; whether to go on."""
    cdef Contexts contexts = r.contexts[n_contexts[0]]
    cdef Collected c
    cdef bint whole
    c.first_iov = b.n_iov
    whole = collect(r, b, desc, at, &contexts, &c)
    if not whole:
        if c.started:
            # The rest of the frame will come; unless there is no room for it in the ring.
            if b.n == 0 and between(&r.w, r.w.head, r.w.tail) == r.w.size - 1:
                r.n_drops[TOO_LONG] += 1
                drop(r, at[0], &contexts)
        elif b.n == 0:
            drop(r, at[0], &contexts)  # contexts, and nothing behind them yet
        b.n_iov = c.first_iov
        return False
    if c.drop == KEPT:
        c.drop = finish(r, b, &c)
    if c.drop != KEPT:
        b.n_iov = c.first_iov
        if c.drop == N_DROPS or b.n != 0:
            return False  # there is no room for its segments; or it will be the oldest next time
        r.n_drops[c.drop] += 1
        r.counts[TSCTFC] += c.failed
        drop(r, at[0], &contexts)
        return True
    n_contexts[0] += 1
    r.contexts[n_contexts[0]] = contexts
    r.parsed[b.n].end = at[0]
    r.parsed[b.n].contexts = n_contexts[0]
    r.parsed[b.n].failed = c.failed
    vnic_prefetch(b.iov[b.frames[b.n].first].iov_base)
    b.n += 1
    return True


cdef void note_destinations(TxRing r, const vnic_burst *b) noexcept nogil:
    """Keep what the frames address, for the counters: afterwards they are the driver's again."""
    cdef uint32_t i
    cdef const iovec *start
    cdef uint64_t dst
    for i in range(b.n):
        start = &b.iov[b.frames[i].first]
        if start.iov_len >= sizeof(dst):
            memcpy(&dst, start.iov_base, sizeof(dst))
        else:
            dst = 0
            gather_start(b, &b.frames[i], <uint8_t *>&dst, 6)
        r.parsed[i].kind = destination(dst)


cdef inline void drop(TxRing r, uint32_t end, const Contexts *contexts) noexcept nogil:
    """Consume the oldest descriptors without sending anything."""
    r.contexts[0] = contexts[0]
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
