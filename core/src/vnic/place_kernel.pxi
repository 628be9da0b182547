"""Placing one frame: its buffers, its header, and what its guest lacks.  Part of room_kernel.pyx."""

# ---- reserving buffers -------------------------------------------------------------------------

cdef uint32_t top_up(Room r, uint32_t want) noexcept nogil:
    """Have ``want`` buffers reserved behind the used ones, if the ring has them; how many are."""
    cdef vnic_burst *b = &r.buffers
    cdef uint32_t have = b.n - r.next - r.used
    cdef uint32_t shift_iov
    cdef uint32_t i
    if have >= want:
        return have
    if r.next == b.n:
        b.n = b.n_iov = r.next = 0
    elif b.n + want - have > b.n_max or b.n_iov + want > b.n_iov_max // 2:
        # Move what is reserved to the front of both arrays.
        shift_iov = b.frames[r.next].first
        memmove(b.frames, b.frames + r.next, (b.n - r.next) * sizeof(vnic_frame))
        memmove(b.iov, b.iov + shift_iov, (b.n_iov - shift_iov) * sizeof(iovec))
        b.n -= r.next
        b.n_iov -= shift_iov
        for i in range(b.n):
            b.frames[i].first -= shift_iov
        r.next = 0
    if want - have > b.n_max - b.n:
        want = have + b.n_max - b.n
    if want > have:
        r.ring.reserve(r.ring.ring, b, want - have)
    return b.n - r.next - r.used


cdef inline void commit(Room r) noexcept nogil:
    """Give the ring what was filled."""
    if r.used:
        r.ring.commit(r.ring.ring, r.buffers.frames + r.next, r.used)
        r.next += r.used
        r.used = 0


# ---- placing one frame -------------------------------------------------------------------------

cdef inline uint32_t tail_of(const vnic_rx_ring *ring, uint32_t length) noexcept nogil:
    """How many zeroes go behind a frame."""
    if length < ring.frame_min:
        return ring.frame_min - length + ring.trailer_len
    return ring.trailer_len


cdef inline void understate(const vnic_rx_ring *ring, uint8_t *hdr) noexcept nogil:
    """Say no more in a header than the guest may hear: without GUEST_CSUM, not even "valid"."""
    cdef uint8_t flags = hdr[0]
    if not ring.offloads & VNIC_GUEST_CSUM:
        memset(hdr, 0, HEADER_LEN)
        if ring.header_len == 0:
            hdr[0] = flags & <uint8_t>VNIC_HDR_F_DATA_VALID


cdef inline void put_header(void *at, uint64_t head, uint32_t end) noexcept nogil:
    """Write 12 bytes of header, unless they stand there already.

    A driver that keeps header and data on lines of their own, as DPDK's does, uses a buffer over
    and over: a header that says the same then stays in both cores' caches.
    """
    cdef uint64_t was
    cdef uint32_t was_end
    memcpy(&was, at, 8)
    memcpy(&was_end, <uint8_t *>at + 8, 4)
    if was != head or was_end != end:
        memcpy(at, &head, 8)
        memcpy(<uint8_t *>at + 8, &end, 4)


cdef Outcome fill(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                  uint32_t length) noexcept nogil:
    """Put one frame, as it is, into the next buffer or buffers."""
    cdef vnic_burst *b = &r.buffers
    cdef uint32_t header_len = r.ring.header_len, tail = tail_of(r.ring, length), left = length
    cdef uint64_t need = <uint64_t>header_len + length + tail, fits = 0
    cdef uint32_t have = b.n - r.next - r.used, k = 0, at, i, wrote, run
    cdef vnic_frame *first
    cdef vnic_cursor src, dst
    cdef uint8_t out[12]
    cdef uint64_t head
    cdef uint32_t end

    if have == 0:
        have = top_up(r, 1)
        if have == 0:
            return out_of_buffers(r, 0)
    at = r.next + r.used
    first = &b.frames[at]

    if n_iov == 1 and first.count == 1 and need <= first.len:
        # The usual case: one segment to one segment.
        dst.iov = b.iov + first.first
        memcpy(&head, hdr, 8)
        memcpy(&end, hdr + 8, 4)
        end = (end & 0xFFFF) | 1 << 16  # num_buffers; by words, which forward from store to load
        memcpy(first.hdr, &head, 8)
        memcpy(first.hdr + 8, &end, 4)
        if header_len == HEADER_LEN:
            put_header(dst.iov.iov_base, head, end)
        elif header_len != 0:
            memcpy(dst.iov.iov_base, first.hdr, header_len)
        vnic_copy(<char *>dst.iov.iov_base + header_len, iov.iov_base, length)
        if tail == FCS_LEN:
            memset(<char *>dst.iov.iov_base + header_len + length, 0, FCS_LEN)  # one store
        elif tail != 0:
            memset(<char *>dst.iov.iov_base + header_len + length, 0, tail)
        first.len = <uint32_t>need
        first.flags = VNIC_LAST | r.note
        r.used += 1
        return PLACED

    while True:
        fits += b.frames[at + k].len
        k += 1
        if fits >= need:
            break
        if not r.ring.mergeable:
            r.n_too_long += 1
            return DROPPED
        if k == have:
            have = top_up(r, have + 1 + <uint32_t>((need - fits) * k // (fits + 1)))
            at = r.next + r.used  # the arrays may have moved
            if k == have:
                return out_of_buffers(r, have)

    src.iov = iov
    src.left = n_iov
    src.off = 0
    memcpy(out, hdr, HEADER_LEN)
    out[10] = <uint8_t>k
    out[11] = <uint8_t>(k >> 8)
    for i in range(k):
        first = &b.frames[at + i]
        dst.iov = b.iov + first.first
        dst.left = first.count
        dst.off = 0
        wrote = 0
        if i == 0:
            wrote = <uint32_t>vnic_scatter(&dst, out, header_len)
            memcpy(first.hdr, out, HEADER_LEN)
        run = (<uint32_t>need if need < first.len else first.len) - wrote
        if run <= left:
            left -= run
            wrote += <uint32_t>vnic_copy_segments(&dst, &src, run)
        else:
            wrote += <uint32_t>vnic_copy_segments(&dst, &src, left)
            wrote += <uint32_t>vnic_scatter(&dst, ZEROES, run - left)
            left = 0
        need -= wrote
        first.len = wrote
        first.flags = (VNIC_LAST if i == k - 1 else 0) | r.note
    r.used += k
    return PLACED


cdef Outcome out_of_buffers(Room r, uint32_t have) noexcept nogil:
    """The frame at hand needs more than the ``have`` buffers that are left: now, or for ever?

    For ever, if it has the whole ring.  Not if some of that holds the frames before it: those leave
    (`commit`), and it is tried again.
    """
    if r.mark == 0 and (have + r.used >= r.ring.n_max or have + r.used >= BUFFERS):
        r.n_too_long += 1
        return DROPPED
    return FULL


cdef Outcome offload(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                     uint32_t length) noexcept nogil:
    """Put a frame whose offload the guest lacks: summed, or cut into segments, all or none."""
    cdef Offload o
    cdef vnic_hdr fields
    cdef uint8_t headers[HEADERS_MAX]
    cdef uint8_t plain[12]
    cdef iovec cut[VNIC_IOV_MAX]
    cdef vnic_cursor at
    cdef uint32_t i, n, offset, k
    cdef uint16_t checksum
    cdef Outcome outcome
    memset(plain, 0, HEADER_LEN)
    if r.ring.header_len == 0:
        plain[0] = VNIC_HDR_F_DATA_VALID  # for we have made it so
    memcpy(&fields, hdr, HEADER_LEN)
    if fields.gso_type == 0:
        # The two bytes are a segment of their own, between what is before and behind them.
        offload_checksum(iov, n_iov, length, fields.csum_start, &checksum)
        offset = <uint32_t>fields.csum_start + fields.csum_offset
        at.iov = iov
        at.left = n_iov
        at.off = 0
        k = slice_segments(cut, VNIC_IOV_MAX, &at, offset)
        if k + 1 > VNIC_IOV_MAX or n_iov + 3 > VNIC_IOV_MAX:
            r.n_too_long += 1
            return DROPPED
        cut[k].iov_base = &checksum
        cut[k].iov_len = 2
        k += 1
        vnic_cursor_advance(&at, 2)
        k += slice_segments(cut + k, VNIC_IOV_MAX - k, &at, length - offset - 2)
        outcome = fill(r, plain, cut, k, length)
        if outcome == PLACED:
            r.n_summed += 1
        return outcome
    if offload_plan(&o, iov, n_iov, length, hdr) != 0 or n_iov + 2 > VNIC_IOV_MAX:
        r.n_bad_header += 1
        return DROPPED
    if o.n_segments > r.ring.n_max or o.n_segments > BUFFERS:
        r.n_too_long += 1
        return DROPPED
    at = offload_payload(&o, 0, iov, n_iov)
    for i in range(o.n_segments):
        n = offload_segment(&o, i, &at, headers)
        cut[0].iov_base = headers
        cut[0].iov_len = o.headers_len
        k = 1 + slice_segments(cut + 1, VNIC_IOV_MAX - 1, &at, n)
        outcome = fill(r, plain, cut, k, o.headers_len + n)
        if outcome != PLACED:
            # All or none.  If it is the whole ring that is too small, fill has counted the drop.
            unfill(r)
            return outcome
    r.n_segmented += 1
    return PLACED


cdef void unfill(Room r) noexcept nogil:
    """Take back what was filled with the frame at hand: those buffers are as empty as before."""
    cdef uint32_t i, j
    cdef vnic_frame *buffer
    cdef size_t fits
    for i in range(r.next + r.mark, r.next + r.used):
        buffer = &r.buffers.frames[i]
        fits = 0
        for j in range(buffer.count):
            fits += r.buffers.iov[buffer.first + j].iov_len
        buffer.len = <uint32_t>fits if fits < LEN_MAX else LEN_MAX
    r.used = r.mark


cdef uint32_t slice_segments(iovec *out, uint32_t n_max, vnic_cursor *at,
                             uint32_t length) noexcept nogil:
    """Describe length bytes from the cursor on in ``out``; it is behind them afterwards.

    Returns how many segments that took.
    """
    cdef uint32_t k = 0
    cdef size_t run
    while length != 0 and at.left != 0 and k < n_max:
        run = at.iov.iov_len - at.off
        if run > length:
            run = length
        out[k].iov_base = <char *>at.iov.iov_base + at.off
        out[k].iov_len = run
        k += 1
        length -= <uint32_t>run
        vnic_cursor_advance(at, run)
    return k


cdef uint32_t longest_piece(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                            uint32_t length) noexcept nogil:
    """The length of what is delivered of a frame at once."""
    cdef Offload o
    if vnic_hdr_needs(hdr) & ~r.ring.offloads & ~<uint64_t>VNIC_GUEST_CSUM == 0 \
            or offload_plan(&o, iov, n_iov, length, hdr) != 0:
        return length
    return o.headers_len + (o.mss if o.mss < o.payload_len else o.payload_len)


cdef uint32_t judge(Room r, const uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                    uint32_t length) noexcept nogil:
    """Ask the ring's filter about a frame; 0, VNIC_ACCEPT or VNIC_STRIP_TAG as well."""
    cdef uint8_t start[VNIC_LOOK]
    cdef vnic_cursor at
    cdef uint32_t n = length if length < VNIC_LOOK else VNIC_LOOK, verdict
    if iov.iov_len >= n:
        vnic_copy(start, iov.iov_base, n)
    else:
        at.iov = iov
        at.left = n_iov
        at.off = 0
        n = <uint32_t>vnic_gather(&at, start, n)
    if not vnic_hdr_is_plain(hdr):
        length = longest_piece(r, hdr, iov, n_iov, length)
    verdict = r.ring.accept(r.ring.ring, start, n, length)
    r.note = verdict & VNIC_NOTE
    if verdict == 0:
        r.n_filtered += 1
    return verdict


cdef Outcome place_stripped(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                            uint32_t length) noexcept nogil:
    """Put a frame without its VLAN tag."""
    cdef iovec cut[VNIC_IOV_MAX]
    cdef vnic_hdr fields
    cdef vnic_cursor at
    cdef uint32_t k
    if length < VNIC_ETH_HLEN + TAG_LEN:
        r.n_runt += 1
        return DROPPED
    if n_iov + 2 > VNIC_IOV_MAX:
        r.n_too_long += 1
        return DROPPED
    at.iov = iov
    at.left = n_iov
    at.off = 0
    k = slice_segments(cut, VNIC_IOV_MAX, &at, ADDRESSES_LEN)
    vnic_cursor_advance(&at, TAG_LEN)
    k += slice_segments(cut + k, VNIC_IOV_MAX - k, &at, length - ADDRESSES_LEN - TAG_LEN)
    memcpy(&fields, hdr, HEADER_LEN)
    if fields.flags & VNIC_HDR_F_NEEDS_CSUM:
        if fields.csum_start < VNIC_ETH_HLEN + TAG_LEN:
            r.n_bad_header += 1
            return DROPPED
        fields.csum_start -= TAG_LEN
        fields.hdr_len -= TAG_LEN if fields.hdr_len > TAG_LEN else 0
        memcpy(hdr, &fields, HEADER_LEN)
    return place_whole(r, hdr, cut, k, length - TAG_LEN)


cdef Outcome place(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                   uint32_t length) noexcept nogil:
    """Put one frame from outside, whatever it is.

    ``hdr`` is changed on the way: who may have to try again keeps the original.
    """
    cdef uint32_t verdict
    if length < VNIC_ETH_HLEN:
        r.n_runt += 1
        return DROPPED
    if length > VNIC_FRAME_MAX:
        r.n_too_long += 1
        return DROPPED
    if not vnic_hdr_is_plain(hdr) and vnic_hdr_check(hdr, length) != 0:
        r.n_bad_header += 1
        return DROPPED
    if r.ring.accept != NULL:
        verdict = judge(r, hdr, iov, n_iov, length)
        if verdict == 0:
            return DROPPED
        if verdict & VNIC_STRIP_TAG:
            return place_stripped(r, hdr, iov, n_iov, length)
    return place_whole(r, hdr, iov, n_iov, length)


cdef inline Outcome place_whole(Room r, uint8_t *hdr, const iovec *iov, uint32_t n_iov,
                                uint32_t length) noexcept nogil:
    """Put one frame that the guest wants, with a header that was checked."""
    cdef Outcome outcome
    r.mark = r.used
    if vnic_hdr_is_plain(hdr):
        outcome = fill(r, hdr, iov, n_iov, length)
    elif vnic_hdr_needs(hdr) & ~r.ring.offloads:
        outcome = offload(r, hdr, iov, n_iov, length)
    else:
        understate(r.ring, hdr)
        outcome = fill(r, hdr, iov, n_iov, length)
    if outcome == PLACED:
        r.delivered += 1
        r.n_frames += 1
        r.n_bytes += length
    return outcome
