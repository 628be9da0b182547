"""From the guest: descriptors into bursts.  Part of ring_kernel.pyx.

Spec: "Legacy Transmit Descriptor Format"; "TCP/IP Context Transmit Descriptor Format"; "TCP/IP Data
Descriptor Format"; "TCP Segmentation".

Checksums from one place to the frame's end, and segmentation, travel as the burst's virtio-net
header.  All else that a descriptor asks for (VLAN tags, IP checksums, lengths in the headers of a
frame to be segmented) is done in a copy of the frame's first bytes, one slot of scratch per frame:
what it points at is read once, and guest memory is never changed.
"""

cdef enum:             # of the command byte, bits 24 to 31
    CMD_EOP = 1 << 0
    CMD_IFCS = 1 << 1
    CMD_IC = 1 << 2            # of a legacy descriptor: insert a checksum
    CMD_TSE = 1 << 2           # of the others
    CMD_RS = 1 << 3
    CMD_RPS = 1 << 4
    CMD_DEXT = 1 << 5
    CMD_VLE = 1 << 6
    CMD_IDE = 1 << 7
    TUCMD_TCP = 1 << 0
    TUCMD_IP = 1 << 1          # IPv4
    POPTS_IXSM = 1 << 0
    POPTS_TXSM = 1 << 1
    DTYP_CONTEXT = 0
    DTYP_DATA = 1
    TXD_DD = 1

cdef enum:
    SCRATCH = 272              # the longest prefix (a header of 255, or a checksum at 255) and a tag
    TCP_CSUM_AT = 16
    UDP_CSUM_AT = 6
    ETHERTYPE_IPV6 = 0x86DD

cdef enum:
    WRITTEN_NOW = 1            # a descriptor with RS was written back
    WRITTEN_DELAYED = 2        # one with RS and IDE
    EMPTIED = 4                # head has met tail

TX_COUNTERS = {
    "tx_frames": "frames that the link took from the guest",
    "tx_bytes": "bytes of those",
    "tx_drop_bad_buffer": "frames of which a part is not memory",
    "tx_drop_bad_context": "frames that a context descriptor doesn't fit",
    "tx_drop_too_long": "frames of more bytes, descriptors or segments than any frame may have",
    "tx_drop_runt": "frames shorter than an Ethernet header",
}

ctypedef uint32_t Drop

cdef enum:
    KEPT
    BAD_BUFFER
    BAD_CONTEXT
    TOO_LONG
    RUNT
    N_DROPS

# Both context descriptors in force, as they were read: for segmentation, and for checksums alone.
cdef struct Contexts:
    uint64_t[2] tso
    uint64_t[2] csum

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

# What `complete` needs to know of a frame that was parsed.
cdef struct Parsed:
    Contexts contexts          # in force behind it
    uint32_t end               # the descriptor behind its last
    uint32_t header_len        # of a frame to be segmented; 0: of one that is not
    uint32_t mss
    bint failed                # segmentation: less or more was there than announced
    Destination kind

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


cdef class TxRing(Ring):
    """Frames from the guest: `parse` them into a burst, `complete` those that were taken."""

    cdef Contexts contexts
    cdef Parsed *parsed
    cdef uint8_t *scratch
    cdef uint32_t vlan_type
    cdef bint insert           # CTRL.VME: without it VLE means nothing
    cdef bint pad              # TCTL.PSP
    cdef uint32_t written      # `Written`, since the last `complete`
    cdef uint64_t n_frames, n_bytes
    cdef uint64_t[N_DROPS] n_drops

    def __cinit__(self, *args):
        self.parsed = <Parsed *>calloc(VNIC_BURST_MAX, sizeof(Parsed))
        self.scratch = <uint8_t *>calloc(VNIC_BURST_MAX, SCRATCH)
        if self.parsed == NULL or self.scratch == NULL:
            raise MemoryError
        self.vlan_type = 0x8100

    def __dealloc__(self):
        free(self.parsed)
        free(self.scratch)

    @property
    def counters(self) -> dict:
        """What became of the frames, by name (see `TX_COUNTERS`)."""
        return {
            "tx_frames": self.n_frames,
            "tx_bytes": self.n_bytes,
            "tx_drop_bad_buffer": self.n_drops[BAD_BUFFER],
            "tx_drop_bad_context": self.n_drops[BAD_CONTEXT],
            "tx_drop_too_long": self.n_drops[TOO_LONG],
            "tx_drop_runt": self.n_drops[RUNT],
        }

    def configure(self, bint pad, uint32_t vlan_type, bint insert):
        """Take TCTL.PSP, VET and CTRL.VME."""
        self.pad = pad
        self.vlan_type = vlan_type & 0xFFFF
        self.insert = insert

    def reset(self):
        """Forget the contexts, as a device reset does."""
        memset(&self.contexts, 0, sizeof(Contexts))
        self.written = 0

    def parse(self, burst):
        """Fill the burst with the oldest frames that are not completed; return how many.

        Nothing that the driver can see changes, but for descriptors that hold no frame to send:
        those are consumed when they are the oldest, and frames among them counted.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        b.n = b.n_iov = 0
        if self.w.size == 0 or self.w.head == self.w.tail:
            return 0
        if between(&self.w, self.w.head, self.w.tail) < RELEASE_GIL:
            parse_frames(self, b)
        else:
            with nogil:
                parse_frames(self, b)
        return b.n

    def complete(self, burst, uint32_t n):
        """Give the first n frames of the burst back to the driver; return what it may want to hear.

        That is 1 for descriptors that asked for it now, 2 for such as can wait, 4 if the ring has
        become empty.  The other frames are forgotten, and will be parsed again.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t i, written
        if n > b.n:
            n = b.n
        for i in range(n):
            count_sent(self, &b.frames[i], &self.parsed[i])
        if n != 0:
            self.contexts = self.parsed[n - 1].contexts
            consume(self, self.parsed[n - 1].end)
        b.n = b.n_iov = 0
        written = self.written
        self.written = 0
        return written


cdef void count_sent(TxRing r, const vnic_frame *frame, const Parsed *parsed) noexcept nogil:
    """Count a frame as it is, or was cut, on the wire."""
    cdef uint64_t *n = r.counts
    cdef uint32_t n_wire = 1, payload, last = frame.len
    cdef uint64_t n_bytes = frame.len
    if parsed.header_len:
        payload = frame.len - parsed.header_len
        n_wire = (payload + parsed.mss - 1) // parsed.mss
        last = parsed.header_len + payload - (n_wire - 1) * parsed.mss
        n_bytes += <uint64_t>(n_wire - 1) * parsed.header_len
        n[PTC64 + size_class(parsed.header_len + parsed.mss + FCS_LEN)] += n_wire - 1
        n[TSCTFC if parsed.failed else TSCTC] += 1
    n_bytes += <uint64_t>n_wire * FCS_LEN
    n[PTC64 + size_class(last + FCS_LEN)] += 1
    n[GPTC] += n_wire
    n[TPT] += n_wire
    n[GOTC] += n_bytes
    n[TOT] += n_bytes
    if parsed.kind == MULTICAST:
        n[MPTC] += n_wire
    elif parsed.kind == BROADCAST:
        n[BPTC] += n_wire
    r.n_frames += 1
    r.n_bytes += frame.len


cdef void consume(TxRing r, uint32_t end) noexcept nogil:
    """Move the head, and write back what asked for it."""
    cdef Desc *desc = ring_of(&r.w)
    cdef uint32_t command
    cdef uint8_t *status
    # Reads of the frames, before the words that allow the driver to change them.
    vnic_fence()
    while r.w.head != end:
        if desc != NULL:
            command = <uint32_t>(vnic_load64(&desc[r.w.head].rest) >> 24) & 0xFF
            if command & (CMD_RS | CMD_RPS):
                status = <uint8_t *>&desc[r.w.head].rest + 4
                status[0] = status[0] & 0xF0 | TXD_DD
                r.written |= WRITTEN_DELAYED if command & CMD_IDE else WRITTEN_NOW
        r.w.head = after(&r.w, r.w.head)
    r._show_head()
    if r.w.head == r.w.tail:
        r.written |= EMPTIED


# ---- descriptors into frames -------------------------------------------------------------------

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


# ---- what a frame's descriptors ask for --------------------------------------------------------

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
    if r.pad and frame.len < FRAME_MIN:
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


# ---- the frame's first bytes, in scratch -------------------------------------------------------

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
