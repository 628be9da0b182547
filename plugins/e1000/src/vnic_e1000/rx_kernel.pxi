"""To the guest: the receive ring, as a room's ring of buffers.  Part of ring_kernel.pyx.

Spec: "Packet Address Filtering"; "Receive Data Storage"; "Legacy Receive Descriptor Format".
"""

cdef enum:
    EXACT_MAX = 16
    TABLE_WORDS = 128
    LONG_MAX = 16384     # bytes of a frame with its FCS; Spec: "Receive Control Register", LPE
    SHORT_MAX = 1522
    ETHERTYPE_IPV4 = 0x0800

cdef enum:
    RCTL_SBP = 1 << 2
    RCTL_UPE = 1 << 3
    RCTL_MPE = 1 << 4
    RCTL_LPE = 1 << 5
    RCTL_BAM = 1 << 15
    RCTL_VFE = 1 << 18
    RCTL_CFIEN = 1 << 19
    RCTL_CFI = 1 << 20
    RCTL_SECRC = 1 << 26

cdef enum:
    RXCSUM_IPOFL = 1 << 8
    RXCSUM_TUOFL = 1 << 9

cdef enum:
    RXD_DD = 1 << 0
    RXD_EOP = 1 << 1
    RXD_IXSM = 1 << 2
    RXD_VP = 1 << 3
    RXD_TCPCS = 1 << 5
    RXD_IPCS = 1 << 6
    RXD_PIF = 1 << 7

cdef enum:
    RXD_IPE = 1 << 6

# What accept notes for commit, in the bits that it may use of a buffer's flags.
cdef enum:
    NOTE_TCI_AT = 8          # 16 bits: the tag that was stripped
    NOTE_VP = 1 << 24
    NOTE_PIF = 1 << 25
    NOTE_KIND_AT = 26        # 2 bits: `Destination`
    NOTE_IP_GOOD = 1 << 28
    NOTE_IP_BAD = 1 << 29

RX_COUNTERS = {
    "rx_bad_buffers": "receive descriptors passed over because their buffer was none, or not memory",
}

cdef struct Rx:
    Where w
    uint32_t next             # the first descriptor that is not reserved
    uint32_t buffer_len
    uint32_t rctl
    uint32_t rxcsum
    uint32_t strip            # CTRL.VME
    uint32_t vlan_type        # VET
    uint32_t hash_shift
    uint32_t n_exact
    uint64_t[EXACT_MAX] exact # addresses in memory order
    uint32_t[TABLE_WORDS] multicast
    uint32_t[TABLE_WORDS] vlans
    uint64_t *stats
    uint64_t n_bad_buffers


cdef class RxRing(Ring):
    """Buffers for frames to the guest, and its filters.  `capsule` is what a room is made of."""

    cdef Rx rx
    cdef vnic_rx_ring verbs
    cdef readonly object capsule

    def __init__(self, memory, Stats stats not None):
        Ring.__init__(self, memory, stats)
        self.rx.stats = stats.n
        self.rx.buffer_len = 2048
        self.rx.vlan_type = 0x8100
        self.verbs.ring = &self.rx
        self.verbs.reserve = rx_reserve
        self.verbs.commit = rx_commit
        self.verbs.rollback = rx_rollback
        self.verbs.accept = rx_accept
        self.verbs.mergeable = True
        self.verbs.frame_min = FRAME_MIN
        self.verbs.trailer_len = FCS_LEN
        self.capsule = PyCapsule_New(&self.verbs, VNIC_RX_RING_CAPSULE, NULL)

    cdef void _reduce(self) noexcept nogil:
        Ring._reduce(self)
        self.rx.w = self.w
        self.rx.next = self.w.head
        self.verbs.n_max = self.w.size - 1 if self.w.size else 0

    @property
    def head(self) -> int:
        """The head register."""
        return self.head_word

    @head.setter
    def head(self, uint32_t value):
        self.head_word = value
        self._reduce()

    @property
    def tail(self) -> int:
        """The tail register."""
        return self.tail_word

    @tail.setter
    def tail(self, uint32_t value):
        self.tail_word = value
        self.w.tail = self.rx.w.tail = value % self.w.size if self.w.size else 0

    @property
    def n_bad_buffers(self) -> int:
        """How many descriptors were passed over."""
        return self.rx.n_bad_buffers

    def sync(self):
        """Show in `head` what a room has filled; where that is nothing, it stays as it was written."""
        if self.w.head != self.rx.w.head:
            self.w.head = self.rx.w.head
            self._show_head()

    def configure(self, uint32_t rctl, uint32_t rxcsum, uint32_t vlan_type, bint strip):
        """Take RCTL, RXCSUM and VET as they are written, and CTRL.VME."""
        cdef uint32_t size = 2048 >> (rctl >> 16 & 3)
        # With BSEX sizes are 16 times as large; 00b is reserved then, and taken for the largest.
        if rctl & 1 << 25:
            size = 16384 if rctl >> 16 & 3 == 0 else size * 16
        self.rx.buffer_len = size
        self.rx.rctl = rctl
        self.rx.rxcsum = rxcsum
        self.rx.strip = strip
        self.rx.vlan_type = vlan_type & 0xFFFF
        self.rx.hash_shift = (4, 3, 2, 0)[rctl >> 12 & 3]
        self.verbs.trailer_len = 0 if rctl & RCTL_SECRC else FCS_LEN

    def set_exact(self, addresses):
        """Take the addresses that are valid among the 16: bytes, six each."""
        cdef uint32_t i = 0
        for address in addresses[:EXACT_MAX]:
            self.rx.exact[i] = <uint64_t>int.from_bytes(address, "little")
            i += 1
        self.rx.n_exact = i

    def set_multicast(self, uint32_t i, uint32_t word):
        """Take a word of the multicast table."""
        if i < TABLE_WORDS:
            self.rx.multicast[i] = word

    def set_vlans(self, uint32_t i, uint32_t word):
        """Take a word of the VLAN filter table."""
        if i < TABLE_WORDS:
            self.rx.vlans[i] = word


# ---- filters -----------------------------------------------------------------------------------

cdef inline uint32_t match_address(Rx *rx, uint64_t dst, Destination kind) noexcept nogil:
    """0; VNIC_ACCEPT; and NOTE_PIF where only the hash said so."""
    cdef uint32_t i, bit
    for i in range(rx.n_exact):
        if rx.exact[i] == dst:
            return VNIC_ACCEPT
    if kind == UNICAST:
        return VNIC_ACCEPT if rx.rctl & RCTL_UPE else 0
    if rx.rctl & RCTL_MPE or (kind == BROADCAST and rx.rctl & RCTL_BAM):
        return VNIC_ACCEPT
    bit = <uint32_t>(dst >> 32 >> rx.hash_shift) & 0xFFF
    if rx.multicast[bit >> 5] >> (bit & 31) & 1:
        return VNIC_ACCEPT | NOTE_PIF
    return 0


cdef inline uint32_t note_ip(const uint8_t *start, uint32_t n, uint32_t at) noexcept nogil:
    """Whether the IPv4 header at ``at`` is right, if it is there."""
    cdef uint32_t length
    if at + 20 > n or start[at] >> 4 != 4:
        return 0
    length = (start[at] & 15) * 4
    if length < 20 or at + length > n:
        return 0
    return NOTE_IP_GOOD if vnic_fold(vnic_sum(start + at, length, 0)) == 0xFFFF else NOTE_IP_BAD


cdef uint32_t rx_accept(void *ring, const uint8_t *start, uint32_t n,
                        uint32_t length) noexcept nogil:
    """Spec: "Packet Address Filtering"; 802.1q VLAN packet filtering."""
    cdef Rx *rx = <Rx *>ring
    cdef uint64_t dst
    cdef uint32_t verdict, ethertype = start[12] << 8 | start[13], tci, l3 = VNIC_ETH_HLEN
    cdef uint32_t wire_len = (length if length > FRAME_MIN else FRAME_MIN) + FCS_LEN
    cdef Destination kind
    memcpy(&dst, start, 8)
    dst &= <uint64_t>0xFFFFFFFFFFFF
    kind = destination(dst)
    verdict = match_address(rx, dst, kind)
    if wire_len > <uint32_t>(LONG_MAX if rx.rctl & RCTL_LPE else SHORT_MAX) and not rx.rctl & RCTL_SBP:
        if verdict != 0:
            rx.stats[ROC] += 1
        verdict = 0
    if ethertype == rx.vlan_type and n >= VNIC_ETH_HLEN + TAG_LEN:
        tci = start[14] << 8 | start[15]
        if rx.rctl & RCTL_VFE:
            if not rx.vlans[tci >> 5 & 127] >> (tci & 31) & 1:
                verdict = 0
            if rx.rctl & RCTL_CFIEN and (tci >> 12 & 1) != (rx.rctl & RCTL_CFI != 0):
                verdict = 0
        if rx.strip and verdict != 0:
            verdict |= VNIC_STRIP_TAG | NOTE_VP | tci << NOTE_TCI_AT
        ethertype = start[16] << 8 | start[17]
        l3 += TAG_LEN
    if verdict == 0:
        rx.stats[TPR] += 1
        rx.stats[TOR] += wire_len
        return 0
    verdict |= kind << NOTE_KIND_AT
    if rx.rxcsum & RXCSUM_IPOFL and ethertype == ETHERTYPE_IPV4:
        verdict |= note_ip(start, n, l3)
    return verdict


# ---- the verbs of a ring of buffers ------------------------------------------------------------

cdef uint32_t rx_reserve(void *ring, vnic_burst *b, uint32_t n) noexcept nogil:
    cdef Rx *rx = <Rx *>ring
    cdef Desc *desc = ring_of(&rx.w)
    cdef uint32_t next = rx.next, left, i, first
    cdef uint64_t gpa
    cdef vnic_frame *buffer
    if desc == NULL:
        return 0
    left = between(&rx.w, next, rx.w.tail)
    if n > left:
        n = left
    for i in range(n):
        gpa = vnic_load64(&desc[next].addr_gpa)
        first = b.n_iov
        if gpa == 0 or vnic_translate_segments(rx.w.memory, gpa, rx.buffer_len, VNIC_WRITE,
                                               b.iov, &b.n_iov, b.n_iov_max) != 0:
            # Spec: "Receive Descriptor Queue Structure": a null address is passed over.  So is
            # what is not memory: the bus would have aborted.
            b.n_iov = first
        buffer = &b.frames[b.n]
        buffer.first = first
        buffer.count = b.n_iov - first
        buffer.len = rx.buffer_len if buffer.count else 0
        buffer.token = next
        buffer.flags = 0
        if buffer.count:
            vnic_prefetch_write(b.iov[first].iov_base)
            vnic_prefetch_write(<char *>b.iov[first].iov_base + 64)
        b.n += 1
        next = after(&rx.w, next)
    rx.next = next
    return n


cdef void count_received(Rx *rx, const Tally *t) noexcept nogil:
    cdef uint64_t *stats = rx.stats
    cdef uint32_t i
    stats[GPRC] += t.n
    stats[TPR] += t.n
    stats[GORC] += t.n_bytes
    stats[TOR] += t.n_bytes
    stats[MPRC] += t.by_kind[MULTICAST]
    stats[BPRC] += t.by_kind[BROADCAST]
    for i in range(6):
        stats[PRC64 + i] += t.by_size[i]


cdef inline uint64_t status_of(Rx *rx, const vnic_frame *first) noexcept nogil:
    """All of a descriptor but length, DD and EOP."""
    cdef uint32_t note = first.flags
    cdef uint64_t status = RXD_IXSM, errors = 0, special = 0
    if rx.rxcsum & RXCSUM_TUOFL and first.hdr[0] & VNIC_HDR_F_DATA_VALID:
        status = status & ~<uint64_t>RXD_IXSM | RXD_TCPCS
    if note & (NOTE_IP_GOOD | NOTE_IP_BAD):
        status = status & ~<uint64_t>RXD_IXSM | RXD_IPCS
        if note & NOTE_IP_BAD:
            errors |= RXD_IPE
    if note & NOTE_VP:
        status |= RXD_VP
        special = note >> NOTE_TCI_AT & 0xFFFF
    if note & NOTE_PIF:
        status |= RXD_PIF
    return status << 32 | errors << 40 | special << 48


cdef void rx_commit(void *ring, const vnic_frame *buffers, uint32_t n) noexcept nogil:
    cdef Rx *rx = <Rx *>ring
    cdef Desc *desc = ring_of(&rx.w)
    cdef uint32_t head = rx.w.head, fcs_len = FCS_LEN if rx.rctl & RCTL_SECRC else 0
    cdef uint32_t i, note, length = 0
    cdef uint64_t status = 0
    cdef bint begins = True
    cdef Tally t
    memset(&t, 0, sizeof(t))
    for i in range(n):
        if begins:
            status = status_of(rx, &buffers[i])
            length = fcs_len
        note = buffers[i].flags
        begins = note & VNIC_LAST
        length += buffers[i].len
        if buffers[i].count == 0:
            rx.n_bad_buffers += 1
        if begins:
            tally(&t, 1, length + (TAG_LEN if note & NOTE_VP else 0), note >> NOTE_KIND_AT & 3)
        if desc != NULL:
            # Release: the bytes in the buffer before the word that shows them.
            vnic_store_release64(&desc[head].rest,
                                 status | buffers[i].len
                                 | <uint64_t>(RXD_DD | (RXD_EOP if begins else 0)) << 32)
        head = after(&rx.w, head)
    rx.w.head = head
    count_received(rx, &t)


cdef void rx_rollback(void *ring) noexcept nogil:
    cdef Rx *rx = <Rx *>ring
    rx.next = rx.w.head
