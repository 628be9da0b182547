# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The e1000's two descriptor rings, a burst at a time.

Spec: 8254x Family Software Developer's Manual, "Receive and Transmit Description".

All of rings and buffers belongs to a hostile guest, and so do the registers that say where they
are.  Where a ring lies is looked up anew in each call, so nothing of guest memory is held between
calls: what the VMM unmaps is out of reach at once.  Descriptors are read into locals, and what was
found good there is what is used; head and tail are reduced modulo the ring's size; no call looks at
more descriptors than the ring has.  A ring or buffer that is not memory is passed over and counted:
this NIC has no way to complain.

Preconditions of the raw parts: ``memory`` outlives the ring.  `Ring.__init__` sees to it.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

from vnic_abi cimport (
    VNIC_ACCEPT, VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_ETH_HLEN, VNIC_FRAME_MAX,
    VNIC_GSO_NONE, VNIC_GSO_TCPV4, VNIC_GSO_TCPV6, VNIC_GSO_UDP_L4, VNIC_HDR_F_DATA_VALID,
    VNIC_HDR_F_NEEDS_CSUM, VNIC_IOV_MAX, VNIC_LAST, VNIC_MEMORY_CAPSULE, VNIC_READ,
    VNIC_RX_RING_CAPSULE, VNIC_STRIP_TAG, VNIC_WRITE, iovec, vnic_burst, vnic_cursor,
    vnic_cursor_advance, vnic_fence, vnic_fold, vnic_frame, vnic_gather, vnic_hdr, vnic_load64,
    vnic_memory, vnic_prefetch, vnic_prefetch_write, vnic_rx_ring, vnic_store_release64, vnic_sum,
    vnic_sum_segments, vnic_translate, vnic_translate_segments,
)

cdef enum:
    DESC_LEN = 16
    RELEASE_GIL = 32     # descriptors; below, releasing the GIL costs more than it gives
    FCS_LEN = 4
    TAG_LEN = 4
    ADDRESSES_LEN = 12
    FRAME_MIN = 60       # of a frame on the wire, without its FCS
    LEN_MAX = 1 << 20    # bytes of one descriptor's buffer, and of a frame as we count it

cdef struct Desc:
    uint64_t addr_gpa
    uint64_t rest  # length, command, status and the like in one word, so that they are read at once


# ---- statistics --------------------------------------------------------------------------------

cdef enum:
    ROC
    PRC64
    PRC127
    PRC255
    PRC511
    PRC1023
    PRC1522
    GPRC
    BPRC
    MPRC
    GORC
    TOR
    TPR
    RUC
    PTC64
    PTC127
    PTC255
    PTC511
    PTC1023
    PTC1522
    GPTC
    MPTC
    BPTC
    GOTC
    TOT
    TPT
    TSCTC
    TSCTFC
    N_STATS

STATS = {
    "ROC": ROC, "RUC": RUC,
    "PRC64": PRC64, "PRC127": PRC127, "PRC255": PRC255, "PRC511": PRC511, "PRC1023": PRC1023,
    "PRC1522": PRC1522, "GPRC": GPRC, "BPRC": BPRC, "MPRC": MPRC, "GORC": GORC, "TOR": TOR,
    "TPR": TPR, "PTC64": PTC64, "PTC127": PTC127, "PTC255": PTC255, "PTC511": PTC511,
    "PTC1023": PTC1023, "PTC1522": PTC1522, "GPTC": GPTC, "MPTC": MPTC, "BPTC": BPTC,
    "GOTC": GOTC, "TOT": TOT, "TPT": TPT, "TSCTC": TSCTC, "TSCTFC": TSCTFC,
}

ctypedef uint32_t Destination

cdef enum:
    UNICAST
    MULTICAST
    BROADCAST


cdef inline uint32_t size_class(uint32_t wire_len) noexcept nogil:
    """Which of the six counters by size a frame belongs to; its FCS counts."""
    if wire_len <= 64:
        return 0
    if wire_len <= 127:
        return 1
    if wire_len <= 255:
        return 2
    if wire_len <= 511:
        return 3
    return 4 if wire_len <= 1023 else 5


cdef inline Destination destination(uint64_t dst) noexcept nogil:
    """What a frame's first six bytes, in memory order, address."""
    dst &= <uint64_t>0xFFFFFFFFFFFF
    if not dst & 1:
        return UNICAST
    return BROADCAST if dst == <uint64_t>0xFFFFFFFFFFFF else MULTICAST


# Frames on the wire that are counted together: a counter is a walk through memory, these are not.
cdef struct Tally:
    uint64_t n
    uint64_t n_bytes           # FCS and all
    uint64_t[6] by_size
    uint64_t[3] by_kind        # `Destination`


cdef inline void tally(Tally *t, uint32_t n, uint32_t wire_len, Destination kind) noexcept nogil:
    t.n += n
    t.n_bytes += <uint64_t>n * wire_len
    t.by_size[size_class(wire_len)] += n
    t.by_kind[kind] += n


cdef class Stats:
    """The counters that the kernels keep, behind the statistics registers.  Both rings share one."""

    cdef uint64_t[N_STATS] n

    def get(self, uint32_t stat) -> int:
        """Return a counter: an index out of `STATS`."""
        return self.n[stat] if stat < N_STATS else 0

    def subtract(self, uint32_t stat, uint64_t n):
        """Take off what a driver has read."""
        if stat < N_STATS:
            self.n[stat] -= n

    def clear(self):
        """Set all to zero."""
        memset(self.n, 0, sizeof(self.n))


# ---- what both rings share ---------------------------------------------------------------------

cdef struct Where:
    vnic_memory *memory
    uint64_t base_gpa
    uint32_t size   # descriptors; 0: there is no ring
    uint32_t head   # below size, unless that is 0
    uint32_t tail


cdef inline Desc *ring_of(Where *w) noexcept nogil:
    """The ring, or NULL where it is not whole in one region that can be written."""
    if w.size == 0:
        return NULL
    return <Desc *>vnic_translate(w.memory, w.base_gpa, <uint64_t>w.size * DESC_LEN,
                                  VNIC_READ | VNIC_WRITE)


cdef inline uint32_t after(Where *w, uint32_t i) noexcept nogil:
    return i + 1 if i + 1 < w.size else 0


cdef inline uint32_t between(Where *w, uint32_t start, uint32_t end) noexcept nogil:
    """Descriptors from start up to, and without, end."""
    return end - start if end >= start else w.size - start + end


cdef class Ring:
    """A ring of 16-byte descriptors, where registers say that it is."""

    cdef Where w
    cdef uint32_t head_word  # as the driver wrote them: a ring may be given its size later
    cdef uint32_t tail_word
    cdef object memory
    cdef readonly Stats stats
    cdef uint64_t *counts      # of `stats`

    def __init__(self, memory, Stats stats not None):
        self.memory = memory
        self.stats = stats
        self.counts = stats.n
        self.w.memory = <vnic_memory *>PyCapsule_GetPointer(memory.capsule, VNIC_MEMORY_CAPSULE)

    def place(self, uint64_t base_gpa, uint32_t n_bytes):
        """Say where the ring is: base address and length registers, as they are."""
        self.w.base_gpa = base_gpa & ~<uint64_t>(DESC_LEN - 1)
        self.w.size = n_bytes // DESC_LEN
        self._reduce()

    cdef void _reduce(self) noexcept nogil:
        self.w.head = self.head_word % self.w.size if self.w.size else 0
        self.w.tail = self.tail_word % self.w.size if self.w.size else 0

    cdef inline void _show_head(self) noexcept nogil:
        self.head_word = self.w.head

    @property
    def head(self) -> int:
        """The head register: the descriptor that is next."""
        return self.head_word

    @head.setter
    def head(self, uint32_t value):
        self.head_word = value
        self._reduce()

    @property
    def tail(self) -> int:
        """The tail register: one behind the last descriptor that the driver has handed over."""
        return self.tail_word

    @tail.setter
    def tail(self, uint32_t value):
        self.tail_word = value
        self.w.tail = value % self.w.size if self.w.size else 0

    @property
    def n_owned(self) -> int:
        """How many descriptors are the device's."""
        return between(&self.w, self.w.head, self.w.tail)

    @property
    def is_mapped(self) -> bool:
        """Whether the ring is memory, all of it."""
        return ring_of(&self.w) != NULL


include "tx_kernel.pxi"
include "parse_kernel.pxi"
include "wanted_kernel.pxi"
include "scratch_kernel.pxi"
include "rx_kernel.pxi"
