# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, embedsignature=True
"""Offload in software: what one side asks for and the other lacks.

A checksum is completed, or a TCP or UDP frame is cut into segments, each with headers of its own.
The source is never changed: headers are read once into scratch, the payload is only summed here
and copied by whoever places the segment.

Precondition: `vnic_hdr_check` has passed the frame's virtio-net header.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from vnic_abi cimport (
    VNIC_GSO_ECN, VNIC_GSO_TCPV4, VNIC_GSO_TCPV6, VNIC_GSO_UDP_L4, iovec, vnic_cursor,
    vnic_cursor_advance, vnic_fold, vnic_gather, vnic_hdr, vnic_hdr_check, vnic_sum,
    vnic_sum_segments,
)

cdef enum:
    TCP = 6
    UDP = 17
    TCP_FIN_PSH = 0x09
    TCP_CWR = 0x80


cdef inline uint16_t be16(const uint8_t *p) noexcept nogil:
    return <uint16_t>(p[0] << 8 | p[1])


cdef inline void put_be16(uint8_t *p, uint32_t v) noexcept nogil:
    p[0] = <uint8_t>(v >> 8)
    p[1] = <uint8_t>v


cdef inline uint32_t be32(const uint8_t *p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void put_be32(uint8_t *p, uint32_t v) noexcept nogil:
    put_be16(p, v >> 16)
    put_be16(p + 2, v & 0xFFFF)


# ---- checksums ----------------------------------------------------------------------------------

cdef int offload_checksum(const iovec *iov, uint32_t n_iov, uint32_t length, uint32_t start,
                          uint16_t *checksum) noexcept nogil:
    """The checksum from ``start`` to the end, in memory order, the field's own value included."""
    cdef vnic_cursor at
    at.iov = iov
    at.left = n_iov
    at.off = 0
    vnic_cursor_advance(&at, start)
    checksum[0] = <uint16_t>~vnic_fold(vnic_sum_segments(at, length - start, 0))
    if checksum[0] == 0:
        checksum[0] = 0xFFFF  # 0 means "none" in UDP; in ones' complement it is the same number
    return 0


# ---- segmentation ------------------------------------------------------------------------------

cdef int offload_plan(Offload *o, const iovec *iov, uint32_t n_iov, uint32_t length,
                      const uint8_t *hdr) noexcept nogil:
    """Read the headers of a frame with a gso_type, once.  0, or -1 where they make no sense."""
    cdef vnic_cursor at
    cdef vnic_hdr h
    cdef uint32_t have, l3 = 14, l4_header, minimum, longest
    cdef uint16_t ethertype
    memcpy(&h, hdr, 12)
    at.iov = iov
    at.left = n_iov
    at.off = 0
    have = length if length < HEADERS_MAX else HEADERS_MAX
    if vnic_gather(&at, o.headers, have) != have or have < 34:
        return -1
    ethertype = be16(o.headers + 12)
    while ethertype == 0x8100 or ethertype == 0x88A8:
        if l3 + 4 > have:
            return -1
        ethertype = be16(o.headers + l3 + 2)
        l3 += 4
    o.gso_type = h.gso_type & ~VNIC_GSO_ECN
    o.ipv6 = ethertype == 0x86DD
    minimum = 40 if o.ipv6 else 20
    if not o.ipv6 and ethertype != 0x0800:
        return -1
    if o.gso_type == VNIC_GSO_TCPV4 and o.ipv6 or o.gso_type == VNIC_GSO_TCPV6 and not o.ipv6:
        return -1
    if l3 + minimum > have or o.headers[l3] >> 4 != (6 if o.ipv6 else 4):
        return -1
    # Where TCP or UDP begins is what the driver said; what lies between (options, extension
    # headers) is copied as it is.
    o.l3 = l3
    o.l4 = h.csum_start
    if o.l4 < l3 + minimum or (not o.ipv6 and o.l4 != l3 + (o.headers[l3] & 15) * 4):
        return -1
    if o.gso_type == VNIC_GSO_UDP_L4:
        l4_header = 8
        o.csum_at = o.l4 + 6
    else:
        if o.l4 + 20 > have:
            return -1
        l4_header = (o.headers[o.l4 + 12] >> 4) * 4
        if l4_header < 20:
            return -1
        o.csum_at = o.l4 + 16
    o.headers_len = o.l4 + l4_header
    if o.headers_len > have or o.headers_len >= length:
        return -1
    o.payload_len = length - o.headers_len
    o.mss = h.gso_size
    # The longest segment's length must fit the IP header's 16 bits.
    longest = o.headers_len - l3 - (40 if o.ipv6 else 0) \
        + (o.mss if o.mss < o.payload_len else o.payload_len)
    if longest > 0xFFFF:
        return -1
    o.n_segments = (o.payload_len + o.mss - 1) // o.mss
    return 0


cdef vnic_cursor offload_payload(const Offload *o, uint32_t i, const iovec *iov,
                                 uint32_t n_iov) noexcept nogil:
    """Where segment i's payload begins.  Who goes on from segment to segment moves it himself: a
    frame may lie in a thousand pieces, and be cut into as many segments.
    """
    cdef vnic_cursor at
    at.iov = iov
    at.left = n_iov
    at.off = 0
    vnic_cursor_advance(&at, <size_t>o.headers_len + <size_t>i * o.mss)
    return at


cdef uint32_t offload_segment(const Offload *o, uint32_t i, const vnic_cursor *payload,
                              uint8_t *headers) noexcept nogil:
    """Build segment i's headers in ``headers``, checksums complete; return its payload's length.

    Its payload begins at the cursor, which stays there.
    """
    cdef uint32_t start = i * o.mss, n = o.mss, l4_len
    cdef bint last = i == o.n_segments - 1
    cdef uint64_t total
    cdef uint16_t checksum
    if last:
        n = o.payload_len - start
    memcpy(headers, o.headers, o.headers_len)
    l4_len = o.headers_len - o.l4 + n

    if o.ipv6:
        put_be16(headers + o.l3 + 4, o.headers_len - o.l3 - 40 + n)
        total = vnic_sum(headers + o.l3 + 8, 32, 0)
    else:
        put_be16(headers + o.l3 + 2, o.headers_len - o.l3 + n)
        put_be16(headers + o.l3 + 4, be16(headers + o.l3 + 4) + i)
        headers[o.l3 + 10] = headers[o.l3 + 11] = 0
        checksum = <uint16_t>~vnic_fold(vnic_sum(headers + o.l3, o.l4 - o.l3, 0))
        memcpy(headers + o.l3 + 10, &checksum, 2)
        total = vnic_sum(headers + o.l3 + 12, 8, 0)

    if o.gso_type == VNIC_GSO_UDP_L4:
        put_be16(headers + o.l4 + 4, l4_len)
        total += <uint64_t>UDP << 8
    else:
        put_be32(headers + o.l4 + 4, be32(headers + o.l4 + 4) + start)
        if not last:
            headers[o.l4 + 13] &= <uint8_t>~TCP_FIN_PSH
        if i != 0:
            headers[o.l4 + 13] &= <uint8_t>~TCP_CWR
        total += <uint64_t>TCP << 8
    # The pseudo-header's length, as a big-endian 32-bit word read in memory order.
    total += (l4_len >> 8 & 0xFF) | (l4_len & 0xFF) << 8 | (l4_len >> 24) | (l4_len >> 8 & 0xFF00)
    headers[o.csum_at] = headers[o.csum_at + 1] = 0
    # A TCP or UDP header is a multiple of 4 bytes, so the payload's sum follows on an even byte.
    total = vnic_sum(headers + o.l4, o.headers_len - o.l4, total)
    checksum = <uint16_t>~vnic_fold(vnic_sum_segments(payload[0], n, total))
    if checksum == 0 and o.gso_type == VNIC_GSO_UDP_L4:
        checksum = 0xFFFF
    memcpy(headers + o.csum_at, &checksum, 2)
    return n


# ---- the same for Python -----------------------------------------------------------------------

def segments(frame, header):
    """Return the plain frames that a frame with this virtio-net header stands for.

    One whose checksum is to be filled in gives one frame; one with a gso_type gives as many as its
    gso_size says; a plain one comes back as it is.

    Raises: ValueError, if the header makes no sense for the frame.
    """
    cdef bytes source = bytes(frame)
    cdef bytearray hdr = bytearray(header)
    cdef uint8_t *h = hdr
    cdef iovec iov
    cdef Offload o
    cdef uint8_t headers[HEADERS_MAX]
    cdef uint32_t i, n
    cdef uint16_t checksum = 0
    cdef vnic_hdr fields
    cdef vnic_cursor payload
    if len(hdr) != 12 or vnic_hdr_check(h, len(source)) != 0:
        raise ValueError(f"virtio-net header {bytes(header).hex()} fits no frame of {len(source)} bytes")
    memcpy(&fields, h, 12)
    iov.iov_base = PyBytes_AS_STRING(source)
    iov.iov_len = len(source)
    if fields.gso_type == 0:
        if not fields.flags & 1:
            return [source]
        offload_checksum(&iov, 1, len(source), fields.csum_start, &checksum)
        at = fields.csum_start + fields.csum_offset
        return [source[:at] + (<bytes>(<char *>&checksum)[:2]) + source[at + 2 :]]
    if offload_plan(&o, &iov, 1, len(source), h) != 0:
        raise ValueError(f"headers of a {len(source)}-byte frame don't match its gso_type {fields.gso_type}")
    out = []
    payload = offload_payload(&o, 0, &iov, 1)
    for i in range(o.n_segments):
        n = offload_segment(&o, i, &payload, headers)
        out.append((<bytes>(<char *>headers)[: o.headers_len]) + source[payload.off : payload.off + n])
        vnic_cursor_advance(&payload, n)
    return out
