"""A frame's first bytes, made in scratch as its descriptors ask.  Part of ring_kernel.pyx."""

cdef uint8_t[FRAME_MIN] ZEROES  # never written to


cdef inline uint32_t be16(const uint8_t *p) noexcept nogil:
    return <uint32_t>p[0] << 8 | p[1]


cdef inline void put_be16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline vnic_cursor cursor_of(const vnic_burst *b, const vnic_frame *frame) noexcept nogil:
    cdef vnic_cursor at
    at.iov = b.iov + frame.first
    at.left = frame.count
    at.off = 0
    return at


cdef void gather_start(const vnic_burst *b, const vnic_frame *frame, uint8_t *to,
                       uint32_t n) noexcept nogil:
    cdef vnic_cursor at = cursor_of(b, frame)
    vnic_gather(&at, to, n)


cdef void trim(vnic_burst *b, vnic_frame *frame) noexcept nogil:
    """Take off what segments hold beyond the frame's length."""
    cdef uint32_t i = 0
    cdef size_t left = frame.len
    while b.iov[frame.first + i].iov_len < left:
        left -= b.iov[frame.first + i].iov_len
        i += 1
    b.iov[frame.first + i].iov_len = left
    frame.count = i + 1
    b.n_iov = frame.first + frame.count


cdef void pad_frame(vnic_burst *b, vnic_frame *frame) noexcept nogil:
    """Add zeroes up to what Ethernet wants; `collect` has left a segment for them."""
    b.iov[b.n_iov].iov_base = ZEROES
    b.iov[b.n_iov].iov_len = FRAME_MIN - frame.len
    b.n_iov += 1
    frame.count += 1
    frame.len = FRAME_MIN


cdef Drop rewrite(TxRing r, vnic_burst *b, vnic_frame *frame, Wanted *w) noexcept nogil:
    """Move the frame's first bytes to scratch, and do there what its descriptors ask for."""
    cdef uint8_t *slot = r.scratch + b.n * SCRATCH
    cdef uint8_t *p = slot + TAG_LEN
    cdef vnic_cursor at = cursor_of(b, frame)
    cdef uint32_t skip
    cdef iovec *start
    # `finish` and those it asked have seen to it that the frame has so many bytes.
    vnic_gather(&at, p, w.prefix)
    skip = frame.count - at.left
    frame.first += skip
    frame.count -= skip
    if frame.count != 0:
        start = &b.iov[frame.first]
        start.iov_base = <char *>start.iov_base + at.off
        start.iov_len -= at.off
    # In front of them is a segment that is free: the one that `collect` left, or one just emptied.
    frame.first -= 1
    frame.count += 1
    start = &b.iov[frame.first]
    start.iov_base = p
    start.iov_len = w.prefix
    if w.tso:
        if not complete_headers(p, frame.len, w):
            return BAD_CONTEXT
        r.parsed[b.n].header_len = w.prefix
        r.parsed[b.n].mss = w.hdr.gso_size
        if w.payload <= w.hdr.gso_size:
            w.hdr.gso_type = VNIC_GSO_NONE
            w.hdr.gso_size = w.hdr.hdr_len = 0
            r.parsed[b.n].mss = VNIC_FRAME_MAX  # one segment, whatever is added to it
    else:
        if w.ip:
            store_sum(b, frame, w.ip_start, w.ip_end, p + w.ip_at)
        if w.summed:
            store_sum(b, frame, w.start, w.end, p + w.into)
    if w.tag:
        insert_tag(r, frame, start, slot, w)
        if w.tso:
            r.parsed[b.n].header_len += TAG_LEN
    return KEPT


cdef void store_sum(const vnic_burst *b, const vnic_frame *frame, uint32_t start, uint32_t end,
                    uint8_t *into) noexcept nogil:
    cdef vnic_cursor at = cursor_of(b, frame)
    cdef uint16_t checksum
    vnic_cursor_advance(&at, start)
    checksum = <uint16_t>~vnic_fold(vnic_sum_segments(at, end - start, 0))
    memcpy(into, &checksum, 2)


cdef void insert_tag(TxRing r, vnic_frame *frame, iovec *start, uint8_t *slot,
                     Wanted *w) noexcept nogil:
    memmove(slot, slot + TAG_LEN, ADDRESSES_LEN)
    put_be16(slot + ADDRESSES_LEN, r.vlan_type)
    put_be16(slot + ADDRESSES_LEN + 2, w.tci)
    start.iov_base = slot
    start.iov_len += TAG_LEN
    frame.len += TAG_LEN
    if w.hdr.flags:
        w.hdr.csum_start += TAG_LEN
    if w.hdr.gso_type != VNIC_GSO_NONE:
        w.hdr.hdr_len += TAG_LEN


cdef bint complete_headers(uint8_t *p, uint32_t length, const Wanted *w) noexcept nogil:
    """Fill in what the driver leaves to segmentation: lengths, and the IP checksum.

    Drivers leave the IP length zero, and the length out of the pseudo-header's sum: the NIC knows
    both for each segment.  Who takes a virtio-net header wants both for the whole frame.
    Spec: "TCP Segmentation", "IP/TCP/UDP Header Updating".
    """
    cdef uint8_t *ip = p + w.start
    cdef uint8_t *l4 = p + w.into
    cdef uint32_t ip_len = w.into - w.start, total
    cdef uint16_t checksum
    if w.ip:
        if be16(ip - 2) != ETHERTYPE_IPV4 or ip[0] != (0x40 | ip_len >> 2) or ip_len & 3:
            return False
        put_be16(ip + 2, length - w.start)
        ip[10] = ip[11] = 0
        checksum = <uint16_t>~vnic_fold(vnic_sum(ip, ip_len, 0))
        memcpy(ip + 10, &checksum, 2)
    else:
        if be16(ip - 2) != ETHERTYPE_IPV6 or ip[0] >> 4 != 6:
            return False
        put_be16(ip + 4, length - w.start - 40)
    if w.hdr.gso_type == VNIC_GSO_UDP_L4:
        if w.prefix - w.into != 8:
            return False
        put_be16(l4 + 4, length - w.into)
    elif (l4[12] >> 4) * 4 != <int>(w.prefix - w.into):
        return False
    total = be16(l4 + w.hdr.csum_offset) + length - w.into
    put_be16(l4 + w.hdr.csum_offset, (total & 0xFFFF) + (total >> 16))
    return True
