"""From the guest: chains become a burst.  Part of ring_kernel.pyx."""


cdef class TxRing(Ring):
    """Frames from the guest: `parse` them into a burst, `complete` those that were taken."""

    cdef uint64_t needs_max  # GUEST_*-like bits of what the driver may ask for
    cdef uint64_t n_frames, n_bytes, n_bad_header, n_too_long, n_runt

    @property
    def counters(self) -> dict:
        """What became of the frames, by name (see `COUNTERS`)."""
        return {
            "tx_frames": self.n_frames,
            "tx_bytes": self.n_bytes,
            "tx_drop_bad_header": self.n_bad_header,
            "tx_drop_too_long": self.n_too_long,
            "tx_drop_runt": self.n_runt,
        }

    def allow(self, uint64_t needs):
        """Say what headers may ask for (see ``vnic_hdr_needs`` of vnic.h)."""
        self.needs_max = needs

    def ready(self) -> bool:
        """Whether there is anything to parse, or an error to report."""
        if self.v.error != FINE:
            return True
        return self._reach() and (available(&self.v) != 0 or self.v.error != FINE)

    def arm(self) -> bool:
        """Ask to be notified of more; whether there is anything to parse after all."""
        return self._reach() and (arm(&self.v) or self.v.seen_avail != self.v.next_avail)

    def parse(self, burst):
        """Fill the burst with the oldest frames that are not completed; return how many.

        Nothing that the driver can see changes, but for chains that hold no frame to send: those
        are counted and given back when they are the oldest.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t n = available(&self.v) if self._reach() else 0
        b.n = b.n_iov = 0
        if n == 0:
            return 0
        if n < RELEASE_GIL:
            parse_frames(self, b)
        else:
            with nogil:
                parse_frames(self, b)
        return b.n

    def complete(self, burst, uint32_t n):
        """Give the first n frames of the burst back to the driver; whether to interrupt it.

        The others are forgotten, and will be parsed again.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef Vring *v = &self.v
        cdef uint32_t i
        if n > b.n:
            n = b.n
        if n != 0:
            for i in range(n):
                self.n_bytes += b.frames[i].len
            self.n_frames += n
            # Each gets its entry, IN_ORDER or not: one for the whole batch would be allowed then,
            # but the driver reads none of them, so the lines stay ours and cost nothing.
            for i in range(n):
                put_used(v, <uint16_t>(v.next_used + i), b.frames[i].token, 0)
            v.next_used += n
            v.done_avail += n
        v.next_avail = v.done_avail
        b.n = b.n_iov = 0
        return publish(v)


cdef inline bint give_back(TxRing r, uint16_t head, uint64_t *counter) noexcept nogil:
    """A chain without a frame to send: count it, use it."""
    counter[0] += 1
    put_used(&r.v, r.v.next_used, head, 0)
    r.v.next_used += 1
    r.v.done_avail += 1
    return True


cdef uint32_t walk_batch(Vring *v, vnic_burst *b, const uint16_t *heads, uint32_t n) noexcept nogil:
    """Append a frame for each chain, header and all; how many, before a fault or the end of iov."""
    cdef uint32_t i, first
    cdef uint64_t total
    cdef vnic_frame *frame
    cdef int result
    for i in range(n):
        first = b.n_iov
        result = walk(v, heads[i], False, b.iov, &b.n_iov, b.n_iov_max, &total)
        if result != 0:
            b.n_iov = first
            if result == -2 and b.n == 0:
                fail(v, CHAIN_LONG, heads[i], b.n_iov_max)
            return i
        frame = &b.frames[b.n]
        frame.first = first
        frame.count = b.n_iov - first
        frame.len = <uint32_t>total if total < LEN_MAX else LEN_MAX
        frame.token = heads[i]
        frame.flags = 0
        b.n += 1
        if frame.count:
            vnic_prefetch(b.iov[first].iov_base)
            vnic_prefetch(<char *>b.iov[first].iov_base + 64)
            if frame.count > 1:
                vnic_prefetch(b.iov[first + 1].iov_base)
    return n


cdef void parse_frames(TxRing r, vnic_burst *b) noexcept nogil:
    cdef Vring *v = &r.v
    cdef uint16_t heads[BATCH]
    cdef uint32_t n, whole, i, first, given_back = 0
    while b.n < b.n_max:
        n = available(v)
        if n > BATCH:
            n = BATCH
        if n > b.n_max - b.n:
            n = b.n_max - b.n
        n = read_heads(v, n, heads)
        if n == 0:
            return
        first = b.n
        whole = walk_batch(v, b, heads, n)
        v.next_avail += whole
        for i in range(first, b.n):
            if take_header(r, b, &b.frames[i], i == 0):
                continue
            # A chain with nothing to send.  Behind other frames it ends the burst, and is the
            # oldest next time; as the oldest it was given back, and we start again behind it.
            b.n = i
            if i != 0 or given_back == VNIC_BURST_MAX:
                return
            given_back += 1
            b.n_iov = 0
            v.next_avail = v.done_avail
            whole = n
            break
        if whole < n:
            return


cdef bint take_header(TxRing r, vnic_burst *b, vnic_frame *frame, bint oldest) noexcept nogil:
    """Read the virtio-net header, once, and leave the frame behind it.

    False for a chain that holds no frame we would send; if it is the oldest it was given back.
    """
    cdef uint32_t header_len = r.v.header_len, skip
    cdef iovec *iov = b.iov + frame.first
    cdef vnic_cursor at
    cdef uint64_t *counter = NULL
    if frame.len < header_len + VNIC_ETH_HLEN:
        counter = &r.n_runt
    elif frame.len - header_len > VNIC_FRAME_MAX:
        counter = &r.n_too_long
    elif frame.count > VNIC_IOV_MAX:
        counter = &r.n_too_long
    else:
        if iov.iov_len >= 12:
            memcpy(frame.hdr, iov.iov_base, 12)  # two bytes too many of an old driver's 10
            if iov.iov_len == header_len:
                frame.first += 1
                frame.count -= 1
            else:
                iov.iov_base = <char *>iov.iov_base + header_len
                iov.iov_len -= header_len
        else:
            memset(frame.hdr, 0, 12)
            at.iov = iov
            at.left = frame.count
            at.off = 0
            vnic_gather(&at, frame.hdr, header_len)
            skip = frame.count - at.left
            frame.first += skip
            frame.count -= skip
            iov = b.iov + frame.first
            iov.iov_base = <char *>iov.iov_base + at.off
            iov.iov_len -= at.off
        frame.len -= header_len
        if vnic_hdr_is_plain(frame.hdr):
            memset(frame.hdr, 0, 12)
            return True
        frame.hdr[0] &= VNIC_HDR_F_NEEDS_CSUM  # a driver may set no other: nobody has checked it
        if vnic_hdr_check(frame.hdr, frame.len) == 0 \
                and not vnic_hdr_needs(frame.hdr) & ~r.needs_max:
            return True
        counter = &r.n_bad_header
    if oldest:
        give_back(r, <uint16_t>frame.token, counter)
    return False
