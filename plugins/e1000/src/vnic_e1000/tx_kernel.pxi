"""From the guest: the transmit ring.  Part of ring_kernel.pyx.

Spec: "Legacy Transmit Descriptor Format"; "TCP/IP Context Transmit Descriptor Format"; "TCP/IP Data
Descriptor Format"; "TCP Segmentation".

What stands between `parse` and `complete` is in the order of its being done: parse_kernel.pxi walks
descriptors, wanted_kernel.pxi reads what they ask for, scratch_kernel.pxi does that.

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

# What `complete` needs to know of a frame that was parsed.
cdef struct Parsed:
    uint32_t end               # the descriptor behind its last
    uint32_t contexts          # which of `TxRing.contexts` are in force behind it
    uint32_t header_len        # of a frame to be segmented; 0: of one that is not
    uint32_t mss
    bint failed                # segmentation: less or more was there than announced
    Destination kind


cdef class TxRing(Ring):
    """Frames from the guest: `parse` them into a burst, `complete` those that were taken."""

    cdef Contexts *contexts    # in force at the head; behind that, what frames in the burst left
    cdef Parsed *parsed
    cdef uint32_t n_parsed     # frames that may be completed: none, once the ring has moved
    cdef uint8_t *scratch
    cdef uint32_t vlan_type
    cdef bint insert           # CTRL.VME: without it VLE means nothing
    cdef bint pad              # TCTL.PSP
    cdef uint32_t written      # `Written`, since the last `complete`
    cdef uint64_t n_frames, n_bytes
    cdef uint64_t[N_DROPS] n_drops

    def __cinit__(self, *args):
        self.contexts = <Contexts *>calloc(1 + VNIC_BURST_MAX, sizeof(Contexts))
        self.parsed = <Parsed *>calloc(VNIC_BURST_MAX, sizeof(Parsed))
        self.scratch = <uint8_t *>calloc(VNIC_BURST_MAX, SCRATCH)
        if self.contexts == NULL or self.parsed == NULL or self.scratch == NULL:
            raise MemoryError
        self.vlan_type = 0x8100

    def __dealloc__(self):
        free(self.contexts)
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

    cdef void _reduce(self) noexcept nogil:
        Ring._reduce(self)
        self.n_parsed = 0

    def reset(self):
        """Forget the contexts, as a device reset does."""
        memset(self.contexts, 0, sizeof(Contexts))
        self.n_parsed = self.written = 0

    def parse(self, burst):
        """Fill the burst with the oldest frames that are not completed; return how many.

        Nothing that the driver can see changes, but for descriptors that hold no frame to send:
        those are consumed when they are the oldest, and frames among them counted.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        b.n = b.n_iov = self.n_parsed = 0
        if self.w.size == 0 or self.w.head == self.w.tail:
            return 0
        if between(&self.w, self.w.head, self.w.tail) < RELEASE_GIL:
            parse_frames(self, b)
        else:
            with nogil:
                parse_frames(self, b)
        self.n_parsed = b.n
        return b.n

    def complete(self, burst, uint32_t n):
        """Give the first n frames of the burst back to the driver; return what it may want to hear.

        That is 1 for descriptors that asked for it now, 2 for such as can wait, 4 if the ring has
        become empty.  The other frames are forgotten, and will be parsed again; all are, where the
        ring has been moved since `parse`.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t written
        if n > self.n_parsed:
            n = self.n_parsed
        if n != 0:
            count_sent(self, b, n)
            self.contexts[0] = self.contexts[self.parsed[n - 1].contexts]
            consume(self, self.parsed[n - 1].end)
        b.n = b.n_iov = self.n_parsed = 0
        written = self.written
        self.written = 0
        return written


cdef void count_sent(TxRing r, const vnic_burst *b, uint32_t n) noexcept nogil:
    """Count the first n frames as they are, or were cut, on the wire."""
    cdef uint64_t *stats = r.counts
    cdef const Parsed *parsed
    cdef Tally t
    cdef uint32_t i, length, n_full
    cdef uint64_t n_bytes = 0
    memset(&t, 0, sizeof(t))
    for i in range(n):
        parsed = &r.parsed[i]
        length = b.frames[i].len
        n_bytes += length
        if parsed.header_len:
            # All segments but the last are full, and each has the headers.
            n_full = (length - parsed.header_len - 1) // parsed.mss
            tally(&t, n_full, parsed.header_len + parsed.mss + FCS_LEN, parsed.kind)
            length -= n_full * parsed.mss
            stats[TSCTFC if parsed.failed else TSCTC] += 1
        tally(&t, 1, length + FCS_LEN, parsed.kind)
    r.n_frames += n
    r.n_bytes += n_bytes
    stats[GPTC] += t.n
    stats[TPT] += t.n
    stats[GOTC] += t.n_bytes
    stats[TOT] += t.n_bytes
    stats[MPTC] += t.by_kind[MULTICAST]
    stats[BPTC] += t.by_kind[BROADCAST]
    for i in range(6):
        stats[PTC64 + i] += t.by_size[i]


cdef void consume(TxRing r, uint32_t end) noexcept nogil:
    """Move the head, and write back what asked for it."""
    cdef Desc *desc = ring_of(&r.w)
    cdef uint32_t head = r.w.head, command, written = 0
    cdef uint8_t *status
    # Reads of the frames, before the words that allow the driver to change them.
    vnic_fence()
    while desc != NULL and head != end:
        command = <uint32_t>(vnic_load64(&desc[head].rest) >> 24) & 0xFF
        if command & (CMD_RS | CMD_RPS):
            status = <uint8_t *>&desc[head].rest + 4
            status[0] = status[0] & 0xF0 | TXD_DD
            written |= WRITTEN_DELAYED if command & CMD_IDE else WRITTEN_NOW
        head = after(&r.w, head)
    r.w.head = end
    r._show_head()
    r.written |= written | (EMPTIED if end == r.w.tail else 0)
