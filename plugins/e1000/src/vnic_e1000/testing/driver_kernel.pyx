# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The e1000's descriptor rings from the driver's side: filled, handed over, and taken back.

Written from the manual, not from the device.  What the device writes is checked before it's
believed: status bits that can't be, lengths beyond a buffer, guard bytes behind each buffer.

Preconditions of the raw parts: rings and buffers lie in views of the host's memory that the queue
keeps; the constructors check sizes and counts.

Spec: 8254x Family Software Developer's Manual, "Receive and Transmit Description".
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from vnic_abi cimport vnic_load64, vnic_prefetch, vnic_store64, vnic_store_release64

from vnic.testing.driver import DriverError

cdef enum:
    DESC_LEN = 16
    GUARD_LEN = 8
    AHEAD = 16
    HOLD_GIL = 64        # frames: below that, giving the GIL away costs more than it's worth
    FCS_LEN = 4

    RXD_DD = 1 << 0
    RXD_EOP = 1 << 1
    RXD_IXSM = 1 << 2
    RXD_VP = 1 << 3
    RXD_TCPCS = 1 << 5
    TXD_DD = 1 << 0

    DATA_VALID = 2       # VIRTIO_NET_HDR_F_DATA_VALID

cdef const char *GUARD = b"\xde\xad\xbe\xef\xfe\xed\xfa\xce"

cdef struct Desc:
    uint64_t addr_gpa
    uint64_t rest

cdef struct Slot:
    uint64_t[2] context    # a context descriptor to go first; 0: none
    uint64_t rest          # of a data descriptor, without length and EOP
    uint32_t length


cdef class Queue:
    """A ring, and memory for its buffers."""

    cdef readonly str name
    cdef readonly uint32_t size
    cdef readonly uint64_t ring_gpa
    cdef readonly uint64_t n_frames
    cdef readonly uint64_t n_bytes
    cdef Desc *desc
    cdef char *buffers
    cdef uint64_t buffers_gpa
    cdef uint32_t buffer_len
    cdef size_t stride
    cdef list keep

    def __init__(self, str name, host, uint32_t size, uint32_t buffer_len, uint32_t n_buffers):
        cdef uint32_t i
        if size % 8 or not 8 <= size <= 65528:
            raise ValueError(f"{name}: {size} descriptors; a multiple of 8, up to 65528")
        self.name = name
        self.size = size
        self.keep = []
        self.buffer_len = buffer_len
        # An odd number of cache lines: with a power of two all would share a few cache sets.
        self.stride = ((buffer_len + GUARD_LEN + 63) // 64 | 1) * 64
        self.desc = <Desc *>self._map(host, size * DESC_LEN, &self.ring_gpa)
        self.buffers = self._map(host, self.stride * n_buffers, &self.buffers_gpa)
        for i in range(n_buffers):
            memcpy(self.buffers + i * self.stride + buffer_len, GUARD, GUARD_LEN)

    cdef char *_map(self, host, size_t n, uint64_t *gpa) except NULL:
        cdef uint8_t[::1] view
        gpa[0] = host.alloc(n, 128)
        held = host.memory.view(gpa[0], n)
        view = held
        self.keep.append(held)
        return <char *>&view[0]

    cdef inline char *_buffer(self, uint32_t i) noexcept nogil:
        return self.buffers + i * self.stride

    cdef inline uint64_t _gpa(self, uint32_t i) noexcept nogil:
        return self.buffers_gpa + i * self.stride

    cdef inline uint32_t _after(self, uint32_t i, uint32_t n) noexcept nogil:
        return i + n if i + n < self.size else i + n - self.size


cdef class TxQueue(Queue):
    """The transmit ring.  Frames lie in slots, which go round in order."""

    cdef readonly uint32_t tail
    """What TDT shall say."""
    cdef uint32_t clean      # the oldest descriptor that the device has
    cdef uint32_t n_used
    cdef uint32_t n_slots
    cdef uint32_t slot       # the next to be sent
    cdef uint32_t n_flying   # slots that the device has
    cdef uint32_t cut
    cdef Slot *slots
    cdef uint32_t *span      # descriptors of the frame that begins at each
    cdef bint prepared

    def __init__(self, host, uint32_t size, uint32_t buffer_len, uint32_t n_slots, uint32_t cut):
        Queue.__init__(self, "transmit ring", host, size, buffer_len, n_slots)
        self.n_slots = n_slots
        self.cut = cut
        self.slots = <Slot *>calloc(n_slots, sizeof(Slot))
        self.span = <uint32_t *>calloc(size, sizeof(uint32_t))
        if self.slots == NULL or self.span == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)
        free(self.span)

    @property
    def n_posted(self) -> int:
        """Frames that the device has not shown as sent, as of the last `reclaim`."""
        return self.n_flying

    def reclaim(self) -> int:
        """Take back what the device has sent; return how many frames."""
        return self._reclaim()

    def post(self, frame, uint64_t context0, uint64_t context1, uint64_t rest) -> bool:
        """Copy a frame into the next slot and describe it; False where there is no room."""
        self.prepared = False
        if self.n_flying == self.n_slots:
            return False
        self._lay(self.slot, frame, context0, context1, rest)
        return self._describe() != 0

    def lay(self, uint32_t slot, frame, uint64_t context0, uint64_t context1, uint64_t rest):
        """Put a frame into a slot, for `post_bulk`."""
        if self.n_flying:
            raise RuntimeError(f"{self.name}: {self.n_flying} frames are with the device still")
        self._lay(slot, frame, context0, context1, rest)
        self.slot = 0
        self.prepared = True

    @property
    def slots_count(self) -> int:
        """How many slots there are to lay out."""
        return self.n_slots

    def post_bulk(self, uint32_t n) -> int:
        """Describe the next n slots as they were laid out; return how many there was room for."""
        cdef uint32_t done
        if not self.prepared:
            raise RuntimeError(f"{self.name}: nothing is prepared; send() undoes it")
        if n <= HOLD_GIL:
            return self._post_bulk(n)
        with nogil:
            done = self._post_bulk(n)
        return done

    cdef int _lay(self, uint32_t slot, frame, uint64_t context0, uint64_t context1,
                  uint64_t rest) except -1:
        cdef const uint8_t[::1] view = frame
        cdef Slot *s = &self.slots[slot]
        if not 0 < view.shape[0] <= self.buffer_len:
            raise ValueError(f"{self.name}: a frame of {view.shape[0]} bytes; "
                             f"1 to {self.buffer_len} fit a buffer")
        memcpy(self._buffer(slot), &view[0], view.shape[0])
        s.context[0] = context0
        s.context[1] = context1
        s.rest = rest
        s.length = <uint32_t>view.shape[0]
        return 0

    cdef uint32_t _post_bulk(self, uint32_t n) noexcept nogil:
        cdef uint32_t i
        self._reclaim()
        for i in range(n):
            if self.n_flying == self.n_slots or self._describe() == 0:
                return i
        return n

    cdef inline uint32_t _describe(self) noexcept nogil:
        """Write the next slot's descriptors; how many, or 0 where they don't fit."""
        cdef const Slot *s = &self.slots[self.slot]
        cdef uint32_t left = s.length, run, first = self.tail
        cdef uint32_t need = 1 if left <= self.cut else (left + self.cut - 1) // self.cut
        cdef uint64_t gpa = self._gpa(self.slot)
        if s.context[1]:
            need += 1
        if need > self.size - 1 - self.n_used:
            return 0
        if s.context[1]:
            self._write(s.context[0], s.context[1])
        while left > self.cut:
            run = self.cut
            self._write(gpa, s.rest | run)
            left -= run
            gpa += run
        # EOP and RS, with which the device says that it has sent it.
        self._write(gpa, s.rest | left | <uint64_t>0x09 << 24)
        self.span[first] = need
        self.n_used += need
        self.n_flying += 1
        self.slot = self.slot + 1 if self.slot + 1 < self.n_slots else 0
        self.n_frames += 1
        self.n_bytes += s.length
        return need

    cdef inline void _write(self, uint64_t addr, uint64_t rest) noexcept nogil:
        vnic_store64(&self.desc[self.tail].addr_gpa, addr)
        vnic_store_release64(&self.desc[self.tail].rest, rest)
        self.tail = self._after(self.tail, 1)

    cdef uint32_t _reclaim(self) noexcept nogil:
        cdef uint32_t flying = self.n_flying, clean = self.clean, n_used = self.n_used
        cdef uint32_t span, last, done
        while flying != 0:
            span = self.span[clean]
            last = self._after(clean, span - 1)
            if not vnic_load64(&self.desc[last].rest) >> 32 & TXD_DD:
                break
            clean = self._after(last, 1)
            n_used -= span
            flying -= 1
        done = self.n_flying - flying
        self.n_flying = flying
        self.clean = clean
        self.n_used = n_used
        return done


cdef class RxQueue(Queue):
    """The receive ring: all descriptors but one are the device's."""

    cdef uint32_t next       # the next one that the device will fill
    cdef bint strips         # RCTL.SECRC: no FCS is received
    cdef uint64_t touched    # to give the reads of `recv_bulk` a purpose
    cdef readonly list tags
    """What VLAN tags were stripped of the frames that `recv` returned last; None: none."""

    def __init__(self, host, uint32_t size, uint32_t buffer_len, bint strips):
        cdef uint32_t i
        Queue.__init__(self, "receive ring", host, size, buffer_len, size)
        self.strips = strips
        self.tags = []
        for i in range(size):
            self._post(i)

    @property
    def tail(self) -> int:
        """What RDT shall say."""
        return self.next - 1 if self.next else self.size - 1

    @property
    def pending(self) -> bool:
        """Whether there is a frame to take."""
        return vnic_load64(&self.desc[self.next].rest) >> 32 & RXD_DD != 0

    def recv(self, uint32_t limit):
        """Return (frame, header) of up to ``limit`` frames, and post their buffers again."""
        cdef list out = []
        self.tags = []
        while <uint32_t>len(out) < limit:
            one = self._recv_one()
            if one is None:
                break
            out.append(one)
        return out

    def recv_bulk(self, uint32_t n) -> int:
        """Take up to n frames, look at each one's start, count it, post its buffers again."""
        cdef uint32_t done
        if n <= HOLD_GIL:
            return self._recv_bulk(n)
        with nogil:
            done = self._recv_bulk(n)
        return done

    cdef inline void _post(self, uint32_t i) noexcept nogil:
        vnic_store64(&self.desc[i].addr_gpa, self._gpa(i))
        vnic_store64(&self.desc[i].rest, 0)

    cdef object _recv_one(self):
        cdef uint32_t at = self.next, n = 0, length, total = 0, status, errors
        cdef uint64_t rest
        cdef list parts = []
        cdef uint8_t[12] header
        while True:
            rest = vnic_load64(&self.desc[at].rest)
            status = <uint32_t>(rest >> 32) & 0xFF
            errors = <uint32_t>(rest >> 40) & 0xFF
            length = <uint32_t>rest & 0xFFFF
            if not status & RXD_DD:
                return None
            if length > self.buffer_len or (length == 0 and status & RXD_EOP):
                raise DriverError(f"{self.name}: descriptor {at} has length {length}, of a buffer "
                                  f"of {self.buffer_len}")
            if not status & RXD_EOP and length != self.buffer_len:
                raise DriverError(f"{self.name}: descriptor {at} has length {length}: only a "
                                  f"frame's last buffer may be left unfilled")
            if memcmp(self._buffer(at) + self.buffer_len, GUARD, GUARD_LEN) != 0:
                raise DriverError(f"{self.name}: bytes behind the buffer of descriptor {at} "
                                  f"were written to")
            parts.append(PyBytes_FromStringAndSize(self._buffer(at), length))
            total += length
            n += 1
            if status & RXD_EOP:
                break
            at = self._after(at, 1)
            if n == self.size:
                raise DriverError(f"{self.name}: a frame without an end")
        frame = b"".join(parts)
        if not self.strips:
            frame = frame[:-FCS_LEN]
        if len(frame) < 60 - (4 if status & RXD_VP else 0):
            raise DriverError(f"{self.name}: a frame of {len(frame)} bytes is too short for "
                              f"Ethernet")
        if errors & ~0x60:
            raise DriverError(f"{self.name}: a frame with errors {errors:#x}")
        self.tags.append(<int>(rest >> 48) if status & RXD_VP else None)
        memset(header, 0, sizeof(header))
        if status & RXD_TCPCS and not status & RXD_IXSM and not errors & 0x20:
            header[0] = DATA_VALID
        for i in range(n):
            at = self._after(self.next, i)
            # No later frame shall pass with this one's bytes.
            memset(self._buffer(at), 0xA5, self.buffer_len)
            self._post(at)
        self.next = self._after(self.next, n)
        self.n_frames += 1
        self.n_bytes += len(frame)
        return frame, PyBytes_FromStringAndSize(<char *>header, 12)

    cdef uint32_t _recv_bulk(self, uint32_t n) noexcept nogil:
        cdef uint32_t next = self.next, done = 0, walked, status
        cdef uint64_t rest, n_bytes = 0, touched = self.touched
        for walked in range(self.size - 1):
            if done == n:
                break
            rest = vnic_load64(&self.desc[next].rest)
            status = <uint32_t>(rest >> 32)
            if not status & RXD_DD:
                break
            vnic_prefetch(self._buffer(self._after(next, AHEAD if AHEAD < self.size else 0)))
            touched ^= vnic_load64(<uint64_t *>self._buffer(next))
            n_bytes += rest & 0xFFFF
            if status & RXD_EOP:
                done += 1
            vnic_store64(&self.desc[next].rest, 0)
            next = self._after(next, 1)
        self.next = next
        self.touched = touched
        self.n_frames += done
        self.n_bytes += n_bytes - (0 if self.strips else done * FCS_LEN)
        return done
