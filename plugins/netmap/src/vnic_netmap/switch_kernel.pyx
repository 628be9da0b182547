# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Where the frames of a burst go: a learning switch's table, and bursts sorted by destination.

Preconditions of the raw parts: segments of the burst were checked by its owner; a guest may change
the bytes under us, so addresses are read once.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, iovec, vnic_burst, vnic_cursor, vnic_frame, vnic_gather,
)

cdef enum:
    PORTS_MAX_ = 254    # as VALE: NM_BDG_MAXPORTS
    BUCKETS = 1024
    WAYS = 4            # addresses in one bucket; a fifth takes the place of the oldest
    TO_ALL = 255
    NOWHERE = 254
    MIXED_ = -1
    NONE = VNIC_BURST_MAX   # in place of a frame's index

PORTS_MAX = PORTS_MAX_
MIXED = MIXED_

cdef struct Entry:
    uint64_t mac        # 48 bits, first byte lowest; 0: free
    uint32_t seen_s
    uint32_t port


cdef inline Entry *bucket_of(Entry *table, uint64_t mac) noexcept nogil:
    return table + WAYS * ((mac * <uint64_t>0x9E3779B97F4A7C15) >> 54)


cdef inline bint is_group(uint64_t mac) noexcept nogil:
    return mac & 1


cdef class Forwarding:
    """Addresses to ports, learnt from what ports send; and the last burst, sorted by port."""

    cdef Entry *table
    cdef uint32_t age_s
    # Of the burst last routed:
    cdef uint32_t n                         # frames
    cdef uint8_t to[VNIC_BURST_MAX]         # destination of each
    cdef uint16_t following[VNIC_BURST_MAX] # the next frame for the same one, or NONE
    cdef uint16_t first[256]                # the first frame for each destination, or NONE
    cdef uint8_t order[256]                 # destinations, as they first appear
    cdef uint32_t n_order

    def __cinit__(self, uint32_t age_s=300):
        cdef uint32_t i
        for i in range(256):
            self.first[i] = NONE
        self.age_s = age_s
        self.table = <Entry *>calloc(BUCKETS * WAYS, sizeof(Entry))
        if self.table == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.table)

    def route(self, burst, uint32_t port, uint32_t now_s):
        """Learn where senders are, and find where each frame goes.

        Returns the port, if one port takes the whole burst, or `MIXED`: then ask `destinations`.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        route_frames(self, b, port, now_s)
        if self.n_order == 1 and self.order[0] < NOWHERE:
            return self.order[0]
        return MIXED_

    def destinations(self):
        """Return (port, index of its first frame) of the last burst, as they first appear.

        Frames for all ports, or for none, are not among them.
        """
        cdef uint32_t i
        return [(self.order[i], self.first[self.order[i]]) for i in range(self.n_order)
                if self.order[i] < NOWHERE]

    def tally(self, uint32_t limit):
        """Return how many of the last burst's frames before ``limit`` go to all other ports, and
        how many nowhere, because they belong on the port they came from.
        """
        cdef uint32_t i, n_to_all = 0, n_nowhere = 0
        for i in range(limit if limit < self.n else self.n):
            if self.to[i] == TO_ALL:
                n_to_all += 1
            elif self.to[i] == NOWHERE:
                n_nowhere += 1
        return n_to_all, n_nowhere

    def select(self, burst, lane, uint32_t port, uint32_t limit, bint all_too):
        """Make ``lane`` the frames before ``limit`` that go to a port, in order; return how many.

        ``all_too``: those for all ports as well.  The lane borrows the burst's segments: it is
        good for as long as the burst is.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef vnic_burst *l = <vnic_burst *>PyCapsule_GetPointer(lane.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t i, own = self.first[port], to_all = self.first[TO_ALL] if all_too else NONE
        if limit > b.n:
            limit = b.n
        l.n = 0
        l.iov = b.iov
        l.n_iov = b.n_iov
        while True:
            if own < to_all:
                i, own = own, self.following[own]
            else:
                i = to_all
                if i < limit:
                    to_all = self.following[i]
            if i >= limit:
                break
            l.frames[l.n] = b.frames[i]
            l.frames[l.n].token = i
            l.n += 1
        return l.n

    def unicast(self, lane, uint32_t start):
        """Return the indices in the lane, from ``start`` on, of frames for its port alone."""
        cdef vnic_burst *l = <vnic_burst *>PyCapsule_GetPointer(lane.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t i
        return [i for i in range(start, l.n) if self.to[l.frames[i].token] != TO_ALL]

    def forget(self, uint32_t port):
        """Forget the addresses behind a port."""
        cdef uint32_t i
        for i in range(BUCKETS * WAYS):
            if self.table[i].port == port:
                self.table[i].mac = 0

    def addresses(self):
        """Return the table: address (6 bytes) to port, aged ones too."""
        cdef uint32_t i
        return {int(self.table[i].mac).to_bytes(6, "little"): self.table[i].port
                for i in range(BUCKETS * WAYS) if self.table[i].mac}


cdef void learn(Forwarding f, uint64_t mac, uint32_t port, uint32_t now_s) noexcept nogil:
    cdef Entry *e = bucket_of(f.table, mac)
    cdef Entry *oldest = e
    cdef uint32_t i
    for i in range(WAYS):
        if e[i].mac == mac:
            oldest = &e[i]
            break
        if e[i].mac == 0 or (oldest.mac != 0 and e[i].seen_s < oldest.seen_s):
            oldest = &e[i]
    oldest.mac = mac
    oldest.port = port
    oldest.seen_s = now_s


cdef uint32_t find(Forwarding f, uint64_t mac, uint32_t now_s) noexcept nogil:
    cdef Entry *e = bucket_of(f.table, mac)
    cdef uint32_t i
    for i in range(WAYS):
        if e[i].mac == mac and now_s - e[i].seen_s <= f.age_s:
            return e[i].port
    return TO_ALL


cdef void route_frames(Forwarding f, vnic_burst *b, uint32_t port, uint32_t now_s) noexcept nogil:
    cdef uint32_t i, to = NOWHERE
    cdef uint64_t dst, src, last_dst = <uint64_t>-1, last_src = <uint64_t>-1
    cdef uint8_t addresses[12]
    cdef const uint8_t *start
    cdef vnic_frame *frame
    cdef iovec *iov
    cdef vnic_cursor at
    cdef uint16_t last[256]
    for i in range(256):
        f.first[i] = NONE
    memset(addresses, 0, sizeof(addresses))  # a frame may be shorter than they are
    f.n_order = 0
    f.n = b.n
    for i in range(b.n):
        frame = &b.frames[i]
        iov = b.iov + frame.first
        start = <const uint8_t *>iov.iov_base
        if iov.iov_len < 12:
            at.iov = iov
            at.left = frame.count
            at.off = 0
            vnic_gather(&at, addresses, 12)
            start = addresses
        memcpy(&dst, start, 8)
        memcpy(&src, start + 4, 8)
        dst &= <uint64_t>0xFFFFFFFFFFFF
        src >>= 16
        if src != last_src:
            last_src = src
            if not is_group(src) and src != 0:
                learn(f, src, port, now_s)
                last_dst = <uint64_t>-1  # it may be what was just learnt
        if dst != last_dst:
            last_dst = dst
            # Zero is nobody's, and what marks a free place in the table.
            to = TO_ALL if is_group(dst) or dst == 0 else find(f, dst, now_s)
            if to == port:
                to = NOWHERE
        f.to[i] = to
        f.following[i] = NONE
        if f.first[to] == NONE:
            f.first[to] = i
            f.order[f.n_order] = to
            f.n_order += 1
        else:
            f.following[last[to]] = i
        last[to] = i
