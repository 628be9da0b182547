# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Frames on a byte stream: the peer's bytes to bursts, and bursts to bytes in a socket.

Each frame stands behind its length, four bytes with the most significant first, and is plain: no
virtio-net header.

Preconditions of the raw parts: segments of a burst were checked by its owner.  What a peer says is
checked here, before it is used.

Spec: QEMU, "-netdev stream"; passt(1).
"""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from vnic_abi cimport (
    VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_FRAME_MAX, VNIC_IOV_MAX, iovec, vnic_burst,
    vnic_cursor, vnic_cursor_advance, vnic_frame, vnic_gather, vnic_touch_segments,
)

from vnic.burst_kernel import Burst

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL

    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen

    ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef enum:
    PREFIX_LEN = 4
    SPACE_ = 256 * 1024  # more than a UNIX socket holds unless it is told to: 208 KiB

SPACE = SPACE_


cdef class Incoming:
    """What came from the peer: bytes in, bursts out, in turns.

    While `find` says that there are frames, deliver those of `burst` from `start` on and say how
    many were `taken`.  When there are none, fill `space`, and say how many bytes `came`.
    """

    cdef object memory
    cdef object view
    cdef uint8_t *bytes
    cdef uint32_t begin             # of the bytes that are not in the burst
    cdef uint32_t end               # of the bytes that came
    cdef vnic_burst *c
    cdef readonly object burst
    """Frames in the buffer, on loan until `find` says that there are none."""
    cdef readonly uint32_t start
    """The first of them that was not taken."""
    cdef readonly uint32_t too_long
    """The length that was announced of what can't be a frame; 0: none was."""

    def __cinit__(self):
        self.memory = bytearray(SPACE_)
        self.view = memoryview(self.memory)  # for good: so the memory stays where it is
        self.bytes = <uint8_t *>PyByteArray_AS_STRING(self.memory)
        self.burst = Burst()
        self.c = <vnic_burst *>PyCapsule_GetPointer(self.burst.capsule, VNIC_BURST_CAPSULE)

    def space(self):
        """Return the memory that the next bytes belong into, never none.

        Call it when there are no frames: the bytes of those that were taken give way.
        """
        if self.c.n:
            raise RuntimeError("there are frames to be taken first")
        if self.begin != 0:
            memmove(self.bytes, self.bytes + self.begin, self.end - self.begin)
            self.end -= self.begin
            self.begin = 0
        return self.view[self.end:]

    def came(self, uint32_t n):
        """Note that so many bytes were put into the space."""
        if n > SPACE_ - self.end:
            raise ValueError(f"there was room for {SPACE_ - self.end} bytes, not for {n}")
        self.end += n

    def find(self):
        """Return how many frames of `burst` are to be taken; the next ones, when all were.

        None: more bytes are needed, unless what came is no frame (`too_long`).
        """
        if self.start == self.c.n:
            find_frames(self)
        return self.c.n - self.start

    def taken(self, uint32_t n):
        """Note that so many frames were taken, oldest first."""
        if n > self.c.n - self.start:
            raise ValueError(f"{self.c.n - self.start} frames were to be taken, not {n}")
        self.start += n

    def reset(self):
        """Forget all, as for another peer; return how many frames are lost, parts included."""
        cdef uint32_t n = 0
        while self.find():
            n += self.c.n - self.start
            self.start = self.c.n
        if self.begin != self.end and not self.too_long:
            n += 1
        self.begin = self.end = self.too_long = 0
        return n


cdef void find_frames(Incoming self) noexcept nogil:
    """Make the burst of the whole frames at hand.  Each length is read once, checked, and used."""
    cdef vnic_burst *b = self.c
    cdef vnic_frame *frame
    cdef uint32_t length
    b.n = b.n_iov = self.start = 0
    while b.n < VNIC_BURST_MAX and self.end - self.begin >= PREFIX_LEN:
        memcpy(&length, self.bytes + self.begin, PREFIX_LEN)
        length = ntohl(length)
        if length > VNIC_FRAME_MAX:
            self.too_long = length
            return
        if self.end - self.begin - PREFIX_LEN < length:
            return
        frame = &b.frames[b.n]
        memset(frame, 0, sizeof(vnic_frame))
        frame.first = b.n
        frame.count = 1
        frame.len = length
        b.iov[b.n].iov_base = self.bytes + self.begin + PREFIX_LEN
        b.iov[b.n].iov_len = length
        b.n += 1
        b.n_iov += 1
        self.begin += PREFIX_LEN + length


cdef class Outgoing:
    """What goes to the peer: bursts in, bytes into a socket.

    A frame of which only the start went in is taken: its rest is kept here, and goes first.
    """

    cdef uint8_t *rest
    cdef uint32_t rest_at
    cdef uint32_t rest_end
    cdef uint32_t[VNIC_BURST_MAX] prefixes
    cdef uint64_t[VNIC_BURST_MAX] ends      # of each frame laid out, in the bytes of them all
    cdef iovec[VNIC_IOV_MAX] iov

    def __cinit__(self):
        self.rest = <uint8_t *>malloc(PREFIX_LEN + VNIC_FRAME_MAX)
        if self.rest == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.rest)

    @property
    def waiting(self) -> int:
        """Bytes of a frame that was sent in part."""
        return self.rest_end - self.rest_at

    def send(self, int fd, burst):
        """Write frames to a stream socket; never blocks, raises no signal.

        Returns ``(taken, too_long, error)``: how many frames were taken, how many of those were
        longer than any frame may be and were dropped, and an errno when the connection is broken,
        or 0.  Fewer taken than there were: the socket is full, or broken.
        """
        cdef vnic_burst *b = <vnic_burst *>PyCapsule_GetPointer(burst.capsule, VNIC_BURST_CAPSULE)
        cdef uint32_t taken, too_long = 0
        cdef int error
        with nogil:
            error = send_rest(self, fd)
            taken = 0
            if error == 0:
                taken = send_frames(self, b, fd, &too_long, &error)
        return taken, too_long, error if error != EAGAIN else 0

    def flush(self, int fd):
        """Write the rest of a frame; 0, or an errno when the connection is broken.

        What is `waiting` afterwards didn't fit.
        """
        cdef int error
        with nogil:
            error = send_rest(self, fd)
        return error if error != EAGAIN else 0

    def reset(self):
        """Forget the rest of a frame, as for another peer; return how many were cut so."""
        cdef bint cut = self.rest_at != self.rest_end
        self.rest_at = self.rest_end = 0
        return int(cut)


cdef int send_rest(Outgoing self, int fd) noexcept nogil:
    """0 when nothing is left of it; EAGAIN when the socket is full; or another errno."""
    cdef ssize_t sent
    cdef int error = 0
    while self.rest_at != self.rest_end:
        self.iov[0].iov_base = self.rest + self.rest_at
        self.iov[0].iov_len = self.rest_end - self.rest_at
        sent = write(self, fd, 1, &error)
        if sent < 0:
            return error
        self.rest_at += <uint32_t>sent
    self.rest_at = self.rest_end = 0
    return 0


cdef uint32_t send_frames(Outgoing self, vnic_burst *b, int fd, uint32_t *too_long,
                          int *error) noexcept nogil:
    """As many as the socket takes; how many that were.  EAGAIN or another errno, if not all."""
    cdef uint32_t i = 0, n, whole
    cdef uint32_t n_iov
    cdef uint64_t before
    cdef ssize_t sent
    while i < b.n:
        n = lay_out(self, b, i, &n_iov)
        if n == 0:
            # By itself: too long, or of more segments than one call takes.
            if not keep(self, b, &b.frames[i], 0):
                too_long[0] += 1
            i += 1
            error[0] = send_rest(self, fd)
            if error[0] != 0:
                break
            continue
        sent = write(self, fd, n_iov, error)
        if sent < 0:
            break
        whole = 0
        while whole < n and self.ends[whole] <= <uint64_t>sent:
            whole += 1
        i += whole
        if whole < n:
            before = self.ends[whole - 1] if whole != 0 else 0
            if <uint64_t>sent > before:
                keep(self, b, &b.frames[i], <uint32_t>(sent - before))
                i += 1
            error[0] = EAGAIN
            break
    return i


cdef uint32_t lay_out(Outgoing self, vnic_burst *b, uint32_t start, uint32_t *n_iov) noexcept nogil:
    """Describe frames from ``start`` on for one call; how many.  0: the first one is no case."""
    cdef uint32_t n = 0, k = 0, length
    cdef uint64_t end = 0
    cdef vnic_frame *frame
    while start + n < b.n:
        frame = &b.frames[start + n]
        length = length_of(b, frame)
        if length > VNIC_FRAME_MAX or k + 1 + frame.count > VNIC_IOV_MAX:
            break
        self.prefixes[n] = htonl(length)
        self.iov[k].iov_base = &self.prefixes[n]
        self.iov[k].iov_len = PREFIX_LEN
        memcpy(&self.iov[k + 1], b.iov + frame.first, frame.count * sizeof(iovec))
        k += 1 + frame.count
        end += PREFIX_LEN + length
        self.ends[n] = end
        n += 1
    n_iov[0] = k
    return n


cdef uint32_t length_of(vnic_burst *b, vnic_frame *frame) noexcept nogil:
    """What its segments have, or more than any frame may have.

    Not what the frame's record says: a peer that is told another length than it is sent would take
    payload for lengths from then on.
    """
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(frame.count):
        total += b.iov[frame.first + i].iov_len
        if total > VNIC_FRAME_MAX:
            return VNIC_FRAME_MAX + 1
    return <uint32_t>total


cdef bint keep(Outgoing self, vnic_burst *b, vnic_frame *frame, uint32_t sent) noexcept nogil:
    """Copy what is left of a frame of which so many bytes went, with its prefix; not if too long."""
    cdef uint32_t length = length_of(b, frame), prefix = htonl(length)
    cdef vnic_cursor at
    if length > VNIC_FRAME_MAX:
        return False
    memcpy(self.rest, &prefix, PREFIX_LEN)
    at.iov = b.iov + frame.first
    at.left = frame.count
    at.off = 0
    self.rest_at = sent
    self.rest_end = PREFIX_LEN + length
    if sent < PREFIX_LEN:
        sent = PREFIX_LEN
    vnic_cursor_advance(&at, sent - PREFIX_LEN)
    vnic_gather(&at, self.rest + sent, self.rest_end - sent)
    return True


cdef ssize_t write(Outgoing self, int fd, uint32_t n_iov, int *error) noexcept nogil:
    """One system call; bytes that went, or -1 and an errno."""
    cdef msghdr message
    cdef ssize_t sent
    cdef bint touched = False
    memset(&message, 0, sizeof(message))
    message.msg_iov = self.iov
    message.msg_iovlen = n_iov
    while True:
        sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent >= 0:
            return sent
        if errno == EFAULT and not touched:
            # Guest memory whose file was cut short: a touch has it replaced.
            touched = True
            vnic_touch_segments(self.iov, n_iov)
        elif errno != EINTR:
            error[0] = errno
            return -1
