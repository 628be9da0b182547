"""What a frame's descriptors ask for beyond its being sent.  Part of ring_kernel.pyx."""

# A context descriptor's fields, by their names in the manual.
cdef struct Context:
    uint32_t ipcss
    uint32_t ipcso
    uint32_t ipcse
    uint32_t tucss
    uint32_t tucso
    uint32_t tucse
    uint32_t paylen
    uint32_t tucmd
    uint32_t hdrlen
    uint32_t mss

# Of one frame; `scratch_kernel` does what is not in `hdr`.
cdef struct Wanted:
    uint32_t prefix        # bytes that are needed in scratch
    uint32_t payload       # of a frame to be segmented
    bint tso
    bint tag
    uint32_t tci
    bint ip                # an IP checksum from ip_start to ip_end into ip_at
    uint32_t ip_start, ip_end, ip_at
    bint summed            # a checksum that a virtio-net header can't ask for
    uint32_t start, end, into
    vnic_hdr hdr


cdef inline Context decode(const uint64_t *words) noexcept nogil:
    cdef Context c
    c.ipcss = words[0] & 0xFF
    c.ipcso = words[0] >> 8 & 0xFF
    c.ipcse = words[0] >> 16 & 0xFFFF
    c.tucss = words[0] >> 32 & 0xFF
    c.tucso = words[0] >> 40 & 0xFF
    c.tucse = words[0] >> 48
    c.paylen = words[1] & 0xFFFFF
    c.tucmd = words[1] >> 24 & 0xFF
    c.hdrlen = words[1] >> 40 & 0xFF
    c.mss = words[1] >> 48
    return c


cdef Drop finish(TxRing r, vnic_burst *b, Collected *c) noexcept nogil:
    """Make a burst's frame of what was collected, as its descriptors ask."""
    cdef uint32_t command = <uint32_t>(c.last >> 24) & 0xFF
    cdef vnic_frame *frame = &b.frames[b.n]
    cdef Wanted w
    cdef Context context
    cdef Drop result = KEPT
    cdef uint64_t tagged  # the descriptor that may ask for a tag
    memset(&w, 0, sizeof(w))
    # Spec: "TCP/IP Data Descriptor Format": POPTS and TSE count in the first descriptor.
    w.tso = c.first >> 24 & (CMD_DEXT | CMD_TSE) == CMD_DEXT | CMD_TSE
    if not w.tso and not command & CMD_IFCS:
        # The driver has put an FCS behind its frame, which nobody here would know for one.
        c.length -= FCS_LEN if c.length > FCS_LEN else c.length
    if c.length < VNIC_ETH_HLEN:
        return RUNT
    # VLE counts in the first descriptor of a frame to be segmented, in the last of any other.
    tagged = c.first if w.tso else c.last
    if r.insert and tagged >> 24 & CMD_VLE:
        w.tag = True
        w.tci = <uint32_t>(tagged >> 48)
        w.prefix = ADDRESSES_LEN
    if w.tso:
        context = decode(c.contexts.tso)
        result = want_segments(r, c, &context, &w)
    elif c.first >> 24 & CMD_DEXT:
        if c.first >> 40 & (POPTS_IXSM | POPTS_TXSM):
            context = decode(c.contexts.csum)
            result = want_checksums(c, &context, &w)
    elif command & CMD_IC and not command & CMD_DEXT:
        want_legacy_checksum(c, &w)
    if result != KEPT:
        return result
    if c.length + (TAG_LEN if w.tag else 0) > VNIC_FRAME_MAX:
        return TOO_LONG
    frame.first = c.first_iov + 1
    frame.count = b.n_iov - frame.first
    frame.len = c.length
    frame.flags = 0
    r.parsed[b.n].header_len = 0
    trim(b, frame)
    if w.prefix != 0:
        result = rewrite(r, b, frame, &w)
        if result != KEPT:
            return result
    if r.pad and frame.len < FRAME_MIN and w.hdr.gso_type == VNIC_GSO_NONE:
        pad_frame(b, frame)
    memcpy(frame.hdr, &w.hdr, sizeof(w.hdr))
    return KEPT


cdef void want_legacy_checksum(const Collected *c, Wanted *w) noexcept nogil:
    """Spec: "Legacy Transmit Descriptor Format": out of range, none is inserted."""
    cdef uint32_t start = <uint32_t>(c.last >> 40) & 0xFF, into = <uint32_t>(c.last >> 16) & 0xFF
    if start < c.length and into + 2 <= c.length:
        want_sum(w, start, 0, into, c.length)


cdef inline void want_sum(Wanted *w, uint32_t start, uint32_t end, uint32_t into,
                          uint32_t length) noexcept nogil:
    """A checksum over start..end, or to the frame's end, into a place.

    By the header; where that can't say it, by us.
    """
    if end == 0 and into >= start:
        w.hdr.flags = VNIC_HDR_F_NEEDS_CSUM
        w.hdr.csum_start = start
        w.hdr.csum_offset = into - start
        return
    w.summed = True
    w.start = start
    w.end = end if end != 0 else length
    w.into = into
    if w.prefix < into + 2:
        w.prefix = into + 2


cdef Drop want_checksums(const Collected *c, const Context *context, Wanted *w) noexcept nogil:
    """Spec: "IP/TCP/UDP Checksum Offloading"."""
    cdef uint32_t options = <uint32_t>(c.first >> 40)
    if options & POPTS_IXSM:
        w.ip = True
        w.ip_start = context.ipcss
        w.ip_end = context.ipcse + 1 if context.ipcse else c.length
        w.ip_at = context.ipcso
        if w.ip_start >= w.ip_end or w.ip_end > c.length or w.ip_at + 2 > c.length:
            return BAD_CONTEXT
        if w.prefix < w.ip_at + 2:
            w.prefix = w.ip_at + 2
    if options & POPTS_TXSM:
        if context.tucss >= c.length or context.tucso + 2 > c.length \
                or (context.tucse and (context.tucse >= c.length
                                       or context.tucse < context.tucss)):
            return BAD_CONTEXT
        want_sum(w, context.tucss, context.tucse + 1 if context.tucse else 0, context.tucso,
                 c.length)
    return KEPT


cdef Drop want_segments(TxRing r, Collected *c, const Context *context, Wanted *w) noexcept nogil:
    """Spec: "TCP Segmentation": the frame's start is a prototype of all segments' headers."""
    cdef uint32_t minimum = 20 if context.tucmd & TUCMD_IP else 40
    cdef uint32_t l4_len = 20 if context.tucmd & TUCMD_TCP else 8
    cdef uint32_t csum_at = TCP_CSUM_AT if context.tucmd & TUCMD_TCP else UDP_CSUM_AT
    if context.hdrlen >= c.length or context.mss == 0 or context.ipcss < VNIC_ETH_HLEN \
            or context.tucss < context.ipcss + minimum \
            or context.hdrlen < context.tucss + l4_len \
            or context.tucso != context.tucss + csum_at:
        return BAD_CONTEXT
    w.payload = c.length - context.hdrlen
    if w.payload != context.paylen:
        # What there is, is sent, as far as it was announced.
        c.failed = True
        if w.payload > context.paylen:
            w.payload = context.paylen
            c.length = context.hdrlen + w.payload
        if w.payload == 0:
            return BAD_CONTEXT
    if c.length - context.ipcss > 0xFFFF:
        return TOO_LONG
    w.prefix = context.hdrlen
    w.start = context.ipcss
    w.into = context.tucss
    w.hdr.flags = VNIC_HDR_F_NEEDS_CSUM
    w.hdr.csum_start = context.tucss
    w.hdr.csum_offset = csum_at
    w.hdr.hdr_len = context.hdrlen
    w.hdr.gso_size = context.mss
    if not context.tucmd & TUCMD_TCP:
        w.hdr.gso_type = VNIC_GSO_UDP_L4
    else:
        w.hdr.gso_type = VNIC_GSO_TCPV4 if context.tucmd & TUCMD_IP else VNIC_GSO_TCPV6
    w.ip = context.tucmd & TUCMD_IP != 0
    return KEPT
