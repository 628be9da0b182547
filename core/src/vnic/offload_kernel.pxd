"""What room_kernel and link_kernel call: one frame in, plain frames out."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from vnic_abi cimport iovec, vnic_cursor

cdef enum:
    HEADERS_MAX = 512  # Ethernet, two tags, IPv6 with extension headers, TCP with all its options

cdef struct Offload:
    uint8_t headers[HEADERS_MAX]  # the frame's own, read once
    uint32_t headers_len          # Ethernet to the end of the TCP or UDP header
    uint32_t l3                   # where the IP header begins
    uint32_t l4                   # where the TCP or UDP header begins; csum_start
    uint32_t csum_at              # where its checksum is
    uint32_t payload_len
    uint32_t mss                  # payload of all segments but the last
    uint32_t n_segments
    uint8_t gso_type
    bint ipv6

cdef int offload_plan(Offload *o, const iovec *iov, uint32_t n_iov, uint32_t length,
                      const uint8_t *hdr) noexcept nogil
cdef vnic_cursor offload_payload(const Offload *o, uint32_t i, const iovec *iov,
                                 uint32_t n_iov) noexcept nogil
cdef uint32_t offload_segment(const Offload *o, uint32_t i, const vnic_cursor *payload,
                              uint8_t *headers) noexcept nogil
cdef int offload_checksum(const iovec *iov, uint32_t n_iov, uint32_t length, uint32_t start,
                          uint16_t *checksum) noexcept nogil
