# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Split virtqueues from the driver's side: chains made, handed over, and taken back with suspicion.

Preconditions of the raw parts: rings and buffers lie in views of the host's memory that the queue
keeps; the constructor checks sizes and counts.  All that the device writes (used index, entries,
flags, events, received bytes) is checked here before it's believed.

A queue has *slots*, each with room for one buffer in several segments that lie apart, so that a
device that takes them for one is found out; behind each segment are eight guard bytes.

Spec: Virtio 1.3, "Split Virtqueues"; "Network Device", "Device Operation".
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from vnic_abi cimport (
    VNIC_GSO_NONE, VNIC_GUEST_CSUM, VNIC_GUEST_USO, VNIC_HDR_F_DATA_VALID, VNIC_HDR_F_NEEDS_CSUM,
    vnic_fence, vnic_hdr, vnic_hdr_needs, vnic_load16, vnic_load32, vnic_load64,
    vnic_load_acquire16, vnic_prefetch, vnic_prefetch_write, vnic_store16, vnic_store64,
    vnic_store_release16,
)

from vnic.features import Features
from vnic.testing.driver import DriverError

include "queue_kernel.pxi"


@cython.final
cdef class TxQueue(Queue):
    """The transmit queue: frames are laid out in slots, which go round in order."""

    cdef uint32_t *pool       # slots that are free, a ring
    cdef uint32_t pool_head
    cdef uint32_t pool_tail
    cdef uint32_t *lens       # bytes of a slot's buffer, header included
    cdef uint64_t *sums       # what they added up to when they were sent; 0: not known
    cdef bint prepared

    def __init__(self, *args):
        cdef uint32_t i
        Queue.__init__(self, *args)
        self.pool = <uint32_t *>_calloc(self.size, sizeof(uint32_t))
        self.lens = <uint32_t *>_calloc(self.n_slots, sizeof(uint32_t))
        self.sums = <uint64_t *>_calloc(self.n_slots, sizeof(uint64_t))
        for i in range(self.n_slots):
            self.pool[i] = i
        self.pool_tail = self.n_slots
        self.disarm()

    def __dealloc__(self):
        free(self.pool)
        free(self.lens)
        free(self.sums)

    def reclaim(self):
        """Take completed frames back; return how many."""
        cdef int n = self._reclaim()
        self.raise_fault()
        return n

    def send(self, frames, headers=None):
        """Copy frames and their 12-byte headers into slots and publish them; how many fitted."""
        cdef const uint8_t[::1] frame
        cdef uint32_t slot, n, done = 0
        cdef bytes header
        self.reclaim()
        self.prepared = False
        for i in range(len(frames)):
            frame = frames[i]
            n = self.hdr_len + <uint32_t>frame.shape[0]
            if frame.shape[0] == 0 or n > self.capacity:
                raise ValueError(f"{self.name}: a frame of {frame.shape[0]} bytes; 1 to "
                                 f"{self.capacity - self.hdr_len} fit a buffer as it is cut")
            if self.pool_head == self.pool_tail or self.n_desc_of(n) > self.n_free:
                break
            slot = self.pool[self.pool_head & self.mask]
            self._lay(slot, frame, None if headers is None else headers[i])
            self.sums[slot] = self._sum(slot)
            self.pool_head += 1
            self.post(slot, n, 0)
            self.n_frames += 1
            self.n_bytes += frame.shape[0]
            done += 1
        self.publish()
        return done

    def prepare(self, frames, headers=None):
        """Lay frames out for `send_bulk`: the slots get them in turn."""
        cdef uint32_t i
        self.reclaim()
        if self.n_posted:
            raise RuntimeError(f"{self.name}: {self.n_posted} frames are with the device still")
        for i in range(self.n_slots):
            self.pool[(self.pool_head + i) & self.mask] = i
            self._lay(i, frames[i % len(frames)],
                      None if headers is None else headers[i % len(frames)])
        self.prepared = True

    def send_bulk(self, uint32_t n):
        """Publish the next n prepared frames; return how many fitted."""
        cdef int done
        if not self.prepared:
            raise RuntimeError(f"{self.name}: nothing is prepared; send() undoes it")
        if n <= HOLD_GIL:
            done = self._send_bulk(n)
        else:
            with nogil:
                done = self._send_bulk(n)
        self.raise_fault()
        return done

    cdef void _lay(self, uint32_t slot, const uint8_t[::1] frame, header) except *:
        cdef const uint8_t[::1] bytes_of = header if header is not None else b"\0" * HDR_LEN
        if bytes_of.shape[0] != HDR_LEN:
            raise ValueError(f"a virtio-net header has 12 bytes, not {bytes_of.shape[0]}")
        if frame.shape[0] == 0 or self.hdr_len + frame.shape[0] > self.capacity:
            raise ValueError(f"{self.name}: a frame of {frame.shape[0]} bytes; 1 to "
                             f"{self.capacity - self.hdr_len} fit a buffer as it is cut")
        self.lens[slot] = self.hdr_len + <uint32_t>frame.shape[0]
        self.sums[slot] = 0
        self.store(slot, 0, <const char *>&bytes_of[0], self.hdr_len)
        self.store(slot, self.hdr_len, <const char *>&frame[0], <uint32_t>frame.shape[0])

    cdef uint64_t _sum(self, uint32_t slot) noexcept nogil:
        """FNV-1a over a slot, guards included; never 0."""
        cdef uint64_t total = 0xcbf29ce484222325ull
        cdef size_t i
        for i in range(self.cut_at[self.n_cuts - 1] + self.cut_len[self.n_cuts - 1] + GUARD_LEN):
            total = (total ^ <uint8_t>self._slot(slot)[i]) * 0x100000001b3ull
        return total | 1

    cdef int _reclaim(self) noexcept nogil:
        cdef uint32_t slot = 0, n = 0
        cdef int one, done = 0
        if self.fault != 0:
            return self.fault
        while True:
            one = self.look()
            if one > 0:
                one = reclaim_plain(self, one)
                done += one
                if one != 0:
                    continue
            one = self.take(&slot, &n)
            if one <= 0:
                break
            if self.sums[slot] != 0 and self.sums[slot] != self._sum(slot):
                return self.fail(SENT_CHANGED, slot)
            self.pool[self.pool_tail & self.mask] = slot
            self.pool_tail += 1
            done += 1
        if done != 0:
            self.park()
        return one if one < 0 else done

    cdef int _send_bulk(self, uint32_t n) noexcept nogil:
        cdef int error = self._reclaim()
        if error < 0:
            return error
        n = min(n, self.pool_tail - self.pool_head)
        if self.n_cuts == 1 and not self.indirect:
            n = min(n, self.n_free)
            send_plain(self, n)
        else:
            n = self._send_chains(n)
        if n != 0:
            self.n_frames += n
            self.publish()
        return n

    cdef uint32_t _send_chains(self, uint32_t n) noexcept nogil:
        """Post the next n slots, as far as there are descriptors."""
        cdef uint32_t i, slot
        for i in range(n):
            vnic_prefetch_write(self._slot(self.pool[(self.pool_head + 8) & self.mask]))
            slot = self.pool[self.pool_head & self.mask]
            if self.n_desc_of(self.lens[slot]) > self.n_free:
                return i
            dirty(self._slot(slot))
            self.pool_head += 1
            self.post(slot, self.lens[slot], 0)
            self.n_bytes += self.lens[slot] - self.hdr_len
        return n


@cython.final
cdef class RxQueue(Queue):
    """The receive queue: all slots are posted, but for those that a call is looking at."""

    cdef bint mergeable
    cdef uint64_t *touched  # to give the reads of `recv_bulk` a purpose

    def __init__(self, *args):
        cdef uint32_t i
        Queue.__init__(self, *args)
        self.mergeable = (self.features & <uint64_t>Features.MRG_RXBUF) != 0
        if self.capacity < self.hdr_len:
            raise ValueError(f"{self.name}: buffers of {self.capacity} bytes can't hold a header")
        self.touched = <uint64_t *>_calloc(1, sizeof(uint64_t))
        for i in range(self.n_slots):
            self.post(i, self.capacity, VIRTQ_DESC_F_WRITE)
        self.publish()
        self.disarm()

    def __dealloc__(self):
        free(self.touched)

    def recv(self, uint32_t limit):
        """Return (frame, header) of up to ``limit`` used frames, and post their slots again."""
        cdef list out = []
        while self.fault == 0 and <uint32_t>len(out) < limit:
            one = self._recv_one()
            if one is None:
                break
            out.append(one)
        self.publish()
        self.park()
        self.raise_fault()
        return out

    def recv_bulk(self, uint32_t n):
        """Take up to n frames, look at each one's start, count it, post its slots again."""
        cdef int done
        n = min(n, self.size)
        if n <= HOLD_GIL:
            done = self._recv_bulk(n)
        else:
            with nogil:
                done = self._recv_bulk(n)
        self.raise_fault()
        return done

    cdef object _recv_one(self):
        """The next frame and its header; None if there is none, or the device is at fault."""
        cdef uint8_t header[HDR_LEN]
        cdef uint32_t slot = 0, n = 0, i, n_buffers, total, at = self.hdr_len
        cdef list parts = []
        cdef bytes part
        if self.take(&slot, &n) <= 0:
            return None
        n_buffers = self._open(slot, n, header)
        i = 1
        while n_buffers != 0:
            if not self.guarded(slot):
                self.fail(GUARD_GONE, slot)
                return None
            part = PyBytes_FromStringAndSize(NULL, n - at)
            self.load(slot, at, PyBytes_AS_STRING(part), n - at)
            parts.append(part)
            self._poison(slot, n)
            self.post(slot, self.capacity, VIRTQ_DESC_F_WRITE)
            if i == n_buffers:
                break
            if self._next(&slot, &n, n_buffers, i) <= 0:
                return None
            i += 1
            at = 0
        if n_buffers == 0:
            return None
        part = parts[0] if len(parts) == 1 else b"".join(parts)
        total = <uint32_t>len(part)
        if total == 0:
            self.fail(LEN_TOO_SHORT, n)
        if self.fault != 0 or self._check_header(header, total) < 0:
            return None
        self.n_frames += 1
        self.n_bytes += total
        return part, PyBytes_FromStringAndSize(<char *>header, HDR_LEN)

    cdef inline uint32_t _open(self, uint32_t slot, uint32_t n, uint8_t *header) noexcept nogil:
        """Read a frame's header; return its num_buffers, or 0 after a fault."""
        cdef uint32_t n_buffers
        if n < self.hdr_len or (n == self.hdr_len and n != self.capacity):
            self.fail(LEN_TOO_SHORT, n)
            return 0
        if self.cut_len[0] >= HDR_LEN:
            memcpy(header, self._slot(slot), HDR_LEN)
        else:
            self.load(slot, 0, <char *>header, self.hdr_len)
        if self.hdr_len < HDR_LEN:
            header[10] = header[11] = 0
            return 1
        n_buffers = header[10] | <uint32_t>header[11] << 8
        if n_buffers == 0 or (n_buffers != 1 and not self.mergeable):
            self.fail(BAD_NUM_BUFFERS, n_buffers)
            return 0
        if n_buffers > 1 and n != self.capacity:
            self.fail(NOT_FILLED, n)
            return 0
        return n_buffers

    cdef int _next(
        self, uint32_t *slot, uint32_t *n, uint32_t n_buffers, uint32_t i
    ) noexcept nogil:
        """Take buffer i of a frame in n_buffers."""
        cdef int one = self.take(slot, n)
        if one == 0:
            return self.fail(BUFFERS_MISSING, n_buffers)
        if one > 0 and (n[0] == 0 or (i + 1 < n_buffers and n[0] != self.capacity)):
            return self.fail(NOT_FILLED, n[0])
        return one

    cdef int _check_header(self, const uint8_t *header, uint32_t frame_len) noexcept nogil:
        """Whether a device may say that to this driver.

        Spec: "Device Requirements: Processing of Incoming Packets".
        """
        cdef vnic_hdr h
        cdef uint64_t needs, has = self.features
        memcpy(&h, header, sizeof(h))
        if h.flags == 0 and h.gso_type == VNIC_GSO_NONE:
            return 0
        if has & VNIC_GUEST_USO:
            has |= VNIC_GUEST_USO
        needs = vnic_hdr_needs(header)
        if h.flags != 0:
            needs |= VNIC_GUEST_CSUM
        if (needs & ~has
                or h.flags & ~<uint32_t>(VNIC_HDR_F_NEEDS_CSUM | VNIC_HDR_F_DATA_VALID)
                or (h.flags & VNIC_HDR_F_NEEDS_CSUM
                    and <uint32_t>h.csum_start + h.csum_offset + 2 > frame_len)
                or (h.gso_type != VNIC_GSO_NONE
                    and (h.gso_size == 0 or not h.flags & VNIC_HDR_F_NEEDS_CSUM
                         or not needs & ~VNIC_GUEST_CSUM))):
            return self.fail(BAD_HEADER, h.gso_type)
        return 0

    cdef void _poison(self, uint32_t slot, uint32_t n) noexcept nogil:
        """Wipe what was received, so that no later frame can pass with this one's bytes."""
        cdef uint32_t i, run
        for i in range(self.n_cuts):
            run = min(n, self.cut_len[i])
            memset(self._slot(slot) + self.cut_at[i], 0xA5, run)
            n -= run

    cdef int _recv_bulk(self, uint32_t n) noexcept nogil:
        cdef uint8_t header[HDR_LEN]
        cdef uint32_t done = 0, slot = 0, size = 0, head, i, n_buffers, total
        cdef int there
        if self.fault != 0:
            return self.fault
        while done < n:
            there = self.look()
            if there <= 0:
                break
            there = min(there, AHEAD, <int>(n - done))
            for i in range(there):
                # A guess for the caches alone; `take` checks the entry.
                head = self.posted[(self.used_idx + i) & self.mask] if self.in_order else \
                    (<uint32_t *>&self.used[2 + 4 * ((self.used_idx + i) & self.mask)])[0]
                vnic_prefetch(self._slot(self.chains[head & self.mask].slot))
            while there > 0:
                n_buffers = recv_plain(self, there)
                if n_buffers != 0:
                    done += n_buffers
                    there -= n_buffers
                    continue
                if self.take(&slot, &size) <= 0:
                    break
                n_buffers = self._open(slot, size, header)
                if n_buffers == 0:
                    break
                self.touched[0] ^= vnic_load64(<uint64_t *>(self._slot(slot) + self.frame_at))
                total = size - self.hdr_len
                self.post(slot, self.capacity, VIRTQ_DESC_F_WRITE)
                for i in range(1, n_buffers):
                    if self._next(&slot, &size, n_buffers, i) <= 0:
                        break
                    total += size
                    self.post(slot, self.capacity, VIRTQ_DESC_F_WRITE)
                if self.fault != 0 or self._check_header(header, total) < 0:
                    break
                self.n_bytes += total
                done += 1
                there -= n_buffers
            if self.fault != 0:
                return self.fault
        if done != 0:
            self.n_frames += done
            self.publish()
            self.park()
        return self.fault if self.fault != 0 else <int>done


include "plain_kernel.pxi"
