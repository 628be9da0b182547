"""vnic.h for Cython: the same structs and helpers; their meaning is written there."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "vnic.h" nogil:
    enum:
        VNIC_ABI
        VNIC_BURST_MAX
        VNIC_IOV_MAX
        VNIC_FRAME_MAX
        VNIC_ETH_HLEN
        VNIC_LOOK
        VNIC_TAIL_MAX
        VNIC_REGIONS_MAX
        VNIC_LAST
        VNIC_ACCEPT
        VNIC_STRIP_TAG
        VNIC_READ
        VNIC_WRITE
        VNIC_HDR_F_NEEDS_CSUM
        VNIC_HDR_F_DATA_VALID
        VNIC_GSO_NONE
        VNIC_GSO_TCPV4
        VNIC_GSO_TCPV6
        VNIC_GSO_UDP_L4
        VNIC_GSO_ECN

    const uint32_t VNIC_NOTE
    const uint64_t VNIC_GUEST_CSUM
    const uint64_t VNIC_GUEST_TSO4
    const uint64_t VNIC_GUEST_TSO6
    const uint64_t VNIC_GUEST_ECN
    const uint64_t VNIC_GUEST_USO

    const char *VNIC_BURST_CAPSULE
    const char *VNIC_RX_RING_CAPSULE
    const char *VNIC_MEMORY_CAPSULE

    struct iovec:
        void *iov_base
        size_t iov_len

    struct vnic_frame:
        uint32_t first
        uint32_t count
        uint32_t len
        uint32_t token
        uint8_t hdr[12]
        uint32_t flags

    struct vnic_burst:
        uint32_t n
        uint32_t n_iov
        uint32_t n_max
        uint32_t n_iov_max
        vnic_frame *frames
        iovec *iov

    struct vnic_hdr:
        uint8_t flags
        uint8_t gso_type
        uint16_t hdr_len
        uint16_t gso_size
        uint16_t csum_start
        uint16_t csum_offset
        uint16_t num_buffers

    uint64_t vnic_hdr_needs(const uint8_t *hdr)
    int vnic_hdr_check(uint8_t *hdr, uint32_t len)
    bint vnic_hdr_is_plain(const uint8_t *hdr)

    struct vnic_rx_ring:
        void *ring
        uint32_t (*reserve)(void *ring, vnic_burst *buffers, uint32_t n) noexcept nogil
        void (*commit)(void *ring, const vnic_frame *buffers, uint32_t n) noexcept nogil
        void (*rollback)(void *ring) noexcept nogil
        uint32_t (*accept)(void *ring, const uint8_t *start, uint32_t n, uint32_t len) noexcept nogil
        uint64_t offloads
        uint32_t n_max
        uint32_t header_len
        uint32_t mergeable
        uint32_t frame_min
        uint32_t trailer_len

    struct vnic_region:
        uint64_t gpa
        uint64_t end
        uint64_t delta
        uint32_t access

    struct vnic_memory:
        uint32_t n
        uint32_t last
        vnic_region *regions

    void *vnic_translate(vnic_memory *m, uint64_t gpa, uint64_t len, uint32_t access)
    int vnic_translate_segments(vnic_memory *m, uint64_t gpa, uint64_t len, uint32_t access,
                                iovec *iov, uint32_t *n, uint32_t n_max)

    uint16_t vnic_load_acquire16(const uint16_t *p)
    uint16_t vnic_load16(const uint16_t *p)
    uint32_t vnic_load32(const uint32_t *p)
    uint64_t vnic_load64(const uint64_t *p)
    void vnic_store_release16(uint16_t *p, uint16_t v)
    void vnic_store16(uint16_t *p, uint16_t v)
    void vnic_store_release64(uint64_t *p, uint64_t v)
    void vnic_store64(uint64_t *p, uint64_t v)
    void vnic_fence()
    void vnic_prefetch(const void *p)
    void vnic_prefetch_write(const void *p)

    void vnic_touch_segments(const iovec *iov, uint32_t n)

    struct vnic_cursor:
        const iovec *iov
        uint32_t left
        size_t off

    void vnic_copy(void *to, const void *frm, size_t len)
    void vnic_cursor_advance(vnic_cursor *c, size_t len)
    size_t vnic_gather(vnic_cursor *frm, void *to, size_t len)
    size_t vnic_scatter(vnic_cursor *to, const void *frm, size_t len)
    size_t vnic_copy_segments(vnic_cursor *to, vnic_cursor *frm, size_t len)

    uint64_t vnic_sum(const uint8_t *p, size_t n, uint64_t total)
    uint16_t vnic_fold(uint64_t total)
    uint64_t vnic_sum_segments(vnic_cursor at, size_t n, uint64_t total)
