# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""The burst: up to 256 frames, handed from plugin to plugin in one call.

Preconditions of the raw parts: the segments of a burst point to memory that its owner keeps for
the duration of the call; whoever filled them in checked them against guest memory.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.errno cimport EAGAIN, EFAULT, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from vnic_abi cimport (
    VNIC_ABI, VNIC_BURST_CAPSULE, VNIC_BURST_MAX, VNIC_FRAME_MAX, VNIC_IOV_MAX, iovec, vnic_burst,
    vnic_cursor, vnic_frame, vnic_gather, vnic_touch_segments,
)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t c_writev "writev" (int fd, const iovec *iov, int n)

ABI = VNIC_ABI
BURST_MAX = VNIC_BURST_MAX
FRAME_MAX = VNIC_FRAME_MAX

cdef enum:
    SEGMENTS = 4096  # 16 a frame in a full burst; a longer chain makes a burst of fewer frames
    HEADER_LEN = 12


cdef class Burst:
    """Frames on loan, oldest first.

    In Python: ``len(burst)``, ``burst[i]`` (the frame's bytes), ``burst.header(i)`` (its virtio-net
    header).  For kernels: ``burst.capsule``, a ``struct vnic_burst``.  A descriptor takes frames
    without a look at them: `writev`.  Its owner fills it again for the next call, so keep none.
    """

    cdef vnic_burst *c
    cdef vnic_frame *own_frames
    cdef iovec *own_iov
    cdef object store
    cdef readonly object capsule

    def __cinit__(self):
        self.own_frames = <vnic_frame *>calloc(VNIC_BURST_MAX, sizeof(vnic_frame))
        self.own_iov = <iovec *>calloc(SEGMENTS, sizeof(iovec))
        self.c = <vnic_burst *>calloc(1, sizeof(vnic_burst))
        if self.own_frames == NULL or self.own_iov == NULL or self.c == NULL:
            raise MemoryError
        self.c.frames = self.own_frames
        self.c.iov = self.own_iov
        self.c.n_max = VNIC_BURST_MAX
        self.c.n_iov_max = SEGMENTS
        self.capsule = PyCapsule_New(self.c, VNIC_BURST_CAPSULE, NULL)

    def __dealloc__(self):
        free(self.own_frames)
        free(self.own_iov)
        free(self.c)

    @classmethod
    def of(cls, frames, headers=None):
        """Build a burst of at most 256 bytes-like frames, and of their 12-byte headers if given.

        The burst holds a copy of them.
        """
        cdef Burst burst = cls()
        cdef uint32_t i
        cdef const uint8_t[::1] header
        frames = [bytes(frame) for frame in frames]
        if len(frames) > VNIC_BURST_MAX:
            raise ValueError(f"a burst has at most {VNIC_BURST_MAX} frames, not {len(frames)}")
        for frame in frames:
            if not 0 < len(frame) <= VNIC_FRAME_MAX:
                raise ValueError(f"a frame has 1 to {VNIC_FRAME_MAX} bytes, not {len(frame)}")
        burst.store = frames
        for i in range(len(frames)):
            frame = frames[i]
            burst.c.frames[i].first = i
            burst.c.frames[i].count = 1
            burst.c.frames[i].len = len(frame)
            burst.c.iov[i].iov_base = PyBytes_AS_STRING(frame)
            burst.c.iov[i].iov_len = len(frame)
            if headers is not None and headers[i] is not None:
                header = headers[i]
                if header.shape[0] != HEADER_LEN:
                    raise ValueError(f"a virtio-net header has 12 bytes, not {header.shape[0]}")
                memcpy(burst.c.frames[i].hdr, &header[0], HEADER_LEN)
        burst.c.n = burst.c.n_iov = <uint32_t>len(frames)
        return burst

    def rest(self, uint32_t start):
        """Return the frames from ``start`` on as a burst of its own, on loan like this one."""
        cdef Burst rest = Burst()
        cdef uint32_t i
        for i in range(start, self.c.n):
            rest.c.frames[i - start] = self.c.frames[i]
        rest.c.n = self.c.n - start if start < self.c.n else 0
        rest.c.iov = self.c.iov
        rest.c.n_iov = self.c.n_iov
        rest.store = self
        return rest

    def __len__(self):
        return self.c.n

    cdef vnic_frame *_frame(self, Py_ssize_t i) except NULL:
        if i < 0:
            i += self.c.n
        if not 0 <= i < self.c.n:
            raise IndexError(f"a burst of {self.c.n} frames has none at {i}")
        return &self.c.frames[i]

    def __getitem__(self, Py_ssize_t i):
        """Return the frame's bytes, contiguous and read-only.

        They are a snapshot: what a guest does to its memory meanwhile changes nothing in it, and
        it may be kept.
        """
        cdef vnic_frame *frame = self._frame(i)
        cdef vnic_cursor at
        cdef bytes out = PyBytes_FromStringAndSize(NULL, frame.len)
        at.iov = self.c.iov + frame.first
        at.left = frame.count
        at.off = 0
        vnic_gather(&at, PyBytes_AS_STRING(out), frame.len)
        return memoryview(out)

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.c.n):
            yield self[i]

    def header(self, Py_ssize_t i):
        """Return the frame's ``struct virtio_net_hdr_v1``: 12 bytes, little-endian."""
        cdef vnic_frame *frame = self._frame(i)
        return PyBytes_FromStringAndSize(<char *>frame.hdr, HEADER_LEN)

    def length(self, Py_ssize_t i):
        """Return the frame's bytes without a look at them."""
        return self._frame(i).len

    def n_bytes(self):
        """Return the bytes of all frames together."""
        cdef uint32_t i
        cdef size_t total = 0
        for i in range(self.c.n):
            total += self.c.frames[i].len
        return total

    def writev(self, int fd, uint32_t start=0, bint header=True):
        """Write the frames from ``start`` on to a descriptor, one ``writev`` each.

        With ``header`` the 12-byte virtio-net header goes in front, as a tap with
        ``IFF_VNET_HDR`` wants it.  Never blocks if the descriptor doesn't.  A frame of more
        segments than ``writev`` takes is made contiguous first.

        Returns ``(taken, failed, error)``: how many frames were taken from ``start`` on, how many
        of those the kernel refused, and the errno of the last refusal or 0.  Fewer taken than
        there were: the descriptor is full.
        """
        cdef uint32_t i, failed = 0
        cdef int error = 0, e
        cdef uint32_t n = self.c.n
        with nogil:
            i = start
            while i < n:
                e = write_frame(self.c, &self.c.frames[i], fd, header)
                if e == EAGAIN:
                    break
                if e != 0:
                    failed += 1
                    error = e
                i += 1
        return i - start, failed, error


cdef int write_frame(vnic_burst *burst, vnic_frame *frame, int fd, bint header) noexcept nogil:
    """0 or an errno."""
    cdef iovec iov[VNIC_IOV_MAX]
    cdef vnic_cursor at
    cdef char *flat = NULL
    cdef int n = 0, e = 0
    if header:
        iov[0].iov_base = frame.hdr
        iov[0].iov_len = HEADER_LEN
        n = 1
    if frame.count + n <= VNIC_IOV_MAX:
        memcpy(&iov[n], burst.iov + frame.first, frame.count * sizeof(iovec))
        n += frame.count
    else:
        flat = <char *>malloc(frame.len)
        if flat == NULL:
            return 12  # ENOMEM
        at.iov = burst.iov + frame.first
        at.left = frame.count
        at.off = 0
        vnic_gather(&at, flat, frame.len)
        iov[n].iov_base = flat
        iov[n].iov_len = frame.len
        n += 1
    while c_writev(fd, iov, n) < 0:
        if errno == EFAULT and e == 0:
            vnic_touch_segments(iov, n)
        elif errno != EINTR:
            e = errno
            break
        e = errno
    else:
        e = 0
    free(flat)
    return e
