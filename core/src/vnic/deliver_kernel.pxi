"""Many frames: of a burst, or from a descriptor.  Part of room_kernel.pyx."""


cdef bint deliver_spill(Room r) noexcept nogil:
    """Deliver the frame that waits in the spill, if there is one; False where it still waits."""
    cdef iovec iov
    cdef uint8_t hdr[12]
    if r.spill_len == 0:
        return True
    commit(r)  # it may need the whole ring
    iov.iov_base = r.spill
    iov.iov_len = r.spill_len
    memcpy(hdr, r.spill_hdr, HEADER_LEN)
    if place(r, hdr, &iov, 1, r.spill_len) == FULL:
        r.full = True
        return False
    r.spill_len = 0
    return True


cdef uint32_t put_frames(Room r, vnic_burst *b, uint32_t start) noexcept nogil:
    cdef uint32_t i = start, batch, n
    cdef vnic_frame *frame
    cdef uint8_t hdr[12]
    if not deliver_spill(r):
        return 0
    while i < b.n:
        # Buffers are reserved a batch ahead, so that their lines are on their way while the frames
        # before them are copied.
        n = batch = b.n - i if b.n - i < BATCH else BATCH
        top_up(r, (b.n - i if b.n - i < 2 * BATCH else 2 * BATCH) * r.per_frame)
        while batch != 0:
            frame = &b.frames[i]
            memcpy(hdr, frame.hdr, HEADER_LEN)
            if place(r, hdr, b.iov + frame.first, frame.count, frame.len) == FULL:
                if r.used != 0:
                    commit(r)  # what the frames before it took may be all that was in its way
                    continue
                r.full = True
                return i - start
            i += 1
            batch -= 1
        r.per_frame = (r.used + n - 1) // n if r.used > n else 1
        commit(r)
    return i - start


cdef uint32_t discard_frames(Room r, int fd, uint32_t limit, int *error) noexcept nogil:
    cdef iovec iov
    cdef uint32_t i = 0
    iov.iov_base = r.spill
    iov.iov_len = VNIC_FRAME_MAX
    while i < limit:
        if c_readv(fd, &iov, 1) < 0:
            if errno == EINTR:
                continue
            if errno != EAGAIN:
                error[0] = errno
            break
        i += 1
    r.n_discarded += i
    return i


cdef uint32_t read_frames(Room r, int fd, uint32_t limit, bint header, int *error) noexcept nogil:
    cdef uint32_t done = 0
    cdef int e
    if not deliver_spill(r):
        return 0
    while done < limit:
        # The more there were, the more are fetched ahead.
        if r.next + r.used == r.buffers.n and top_up(r, done + 1 if done < BATCH else BATCH) == 0:
            if r.used != 0:
                commit(r)
                continue
            r.full = True
            break
        e = read_frame(r, fd, header)
        if e != 0:
            if e == EINTR:
                continue
            if e != EAGAIN:
                error[0] = e
            break
        done += 1
        if r.used >= BATCH:
            commit(r)
        if not deliver_spill(r):
            break
    commit(r)
    return done


cdef void spill(Room r, vnic_cursor *at, const uint8_t *hdr, uint32_t length,
                uint64_t fits) noexcept nogil:
    """A frame can't stay where it was read: make it whole in the spill, to be placed like any other.

    Its first ``fits`` bytes are at the cursor, the rest is at the spill's start.
    """
    if length > fits and fits != 0:
        memmove(r.spill + fits, r.spill, length - fits)
    vnic_gather(at, r.spill, fits if fits < length else length)
    memcpy(r.spill_hdr, hdr, HEADER_LEN)
    r.spill_len = length


cdef int read_frame(Room r, int fd, bint header) noexcept nogil:
    """One readv.  0, or an errno.  A frame that can't stay where it was read is in the spill."""
    cdef iovec iov[VNIC_IOV_MAX]
    cdef vnic_burst *b = &r.buffers
    cdef uint8_t hdr[12]
    cdef uint32_t n_iov = 0, k = 0, at, have, length, header_len = r.ring.header_len
    cdef uint32_t guest_first
    cdef uint64_t fits = 0
    cdef ssize_t got
    cdef vnic_frame *buffer
    cdef vnic_cursor c
    cdef uint32_t i, wrote, left, tail, verdict = 0

    memset(hdr, 0, HEADER_LEN)
    if header:
        iov[0].iov_base = hdr
        iov[0].iov_len = HEADER_LEN
        n_iov = 1
    guest_first = n_iov

    # Guest buffers, as many as the frame will probably need.
    have = top_up(r, 1)
    at = r.next + r.used
    while fits < header_len + r.cover:
        if k == have:
            have = top_up(r, have + 1 + <uint32_t>((header_len + r.cover - fits) * k // (fits + 1)))
            at = r.next + r.used  # the arrays may have moved
            if k == have:
                break
        buffer = &b.frames[at + k]
        if n_iov + buffer.count + 1 > VNIC_IOV_MAX:
            break
        memcpy(&iov[n_iov], b.iov + buffer.first, buffer.count * sizeof(iovec))
        n_iov += buffer.count
        fits += buffer.len
        k += 1
        if not r.ring.mergeable:
            break
    # Past the header, which is written when num_buffers is known.
    c.iov = &iov[guest_first]
    c.left = n_iov - guest_first
    c.off = 0
    if fits < header_len:
        fits = 0
        n_iov = guest_first
    else:
        vnic_cursor_advance(&c, header_len)
        i = <uint32_t>(c.iov - &iov[guest_first])
        if i != 0:
            memmove(&iov[guest_first], &iov[guest_first + i], c.left * sizeof(iovec))
            n_iov -= i
        if c.left != 0:
            iov[guest_first].iov_base = <char *>iov[guest_first].iov_base + c.off
            iov[guest_first].iov_len -= c.off
        fits -= header_len
    # And a segment of our own behind them: without it a longer frame would lose its end in silence.
    iov[n_iov].iov_base = r.spill
    iov[n_iov].iov_len = VNIC_FRAME_MAX + 1
    got = c_readv(fd, iov, n_iov + 1)
    if got < 0 and errno == EFAULT:
        vnic_touch_segments(iov, n_iov + 1)
        got = c_readv(fd, iov, n_iov + 1)
    if got < 0:
        return errno
    if got == 0 or (header and got < HEADER_LEN):
        r.n_runt += 1
        return 0
    length = <uint32_t>got - (HEADER_LEN if header else 0)
    if vnic_hdr_needs(hdr) & ~r.ring.offloads:
        r.cover = 0  # this one is to be cut, and so will be the next: read it straight to the spill
    else:
        r.cover = length if length > COVER_MIN else (r.cover // 2 if r.cover > 2 * COVER_MIN
                                                     else COVER_MIN)

    if length > VNIC_FRAME_MAX:
        r.n_too_long += 1
        return 0
    tail = tail_of(r.ring, length)
    c.iov = &iov[guest_first]
    c.left = n_iov - guest_first
    c.off = 0
    if length + tail > fits \
            or not (vnic_hdr_is_plain(hdr) or vnic_hdr_needs(hdr) & ~r.ring.offloads == 0):
        spill(r, &c, hdr, length, fits)
        return 0
    if length < VNIC_ETH_HLEN:
        r.n_runt += 1
        return 0
    if not vnic_hdr_is_plain(hdr) and vnic_hdr_check(hdr, length) != 0:
        r.n_bad_header += 1
        return 0
    if r.ring.accept != NULL:
        verdict = judge(r, hdr, c.iov, c.left, length)
        if verdict == 0:
            return 0
        if verdict & VNIC_STRIP_TAG:
            spill(r, &c, hdr, length, fits)
            return 0
    understate(r.ring, hdr)
    if tail != 0:
        vnic_cursor_advance(&c, length)
        vnic_scatter(&c, ZEROES, tail)

    # It stays.  Say how long, buffer by buffer, and write the header.
    left = header_len + length + tail
    k = 0
    while True:
        buffer = &b.frames[at + k]
        wrote = buffer.len if buffer.len < left else left
        buffer.len = wrote
        buffer.flags = r.note
        left -= wrote
        k += 1
        if left == 0:
            break
    buffer.flags = VNIC_LAST | r.note
    hdr[10] = <uint8_t>k
    hdr[11] = <uint8_t>(k >> 8)
    buffer = &b.frames[at]
    memcpy(buffer.hdr, hdr, HEADER_LEN)
    c.iov = b.iov + buffer.first
    c.left = buffer.count
    c.off = 0
    vnic_scatter(&c, hdr, header_len)
    r.used += k
    r.delivered += 1
    r.n_frames += 1
    r.n_bytes += length
    return 0
