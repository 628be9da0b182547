/* SPDX-License-Identifier: BSD-2-Clause
 *
 * vnic.h: what two kernels that have never met agree on.
 *
 * A burst is an array of frames and an array of segments (POSIX struct iovec).  A frame names a
 * run of segments and carries its virtio-net header beside them, never in front.  A ring of
 * receive buffers is the same thing seen from the other side: frames that are still empty.
 * Guest memory is a sorted table of regions.
 *
 * Everything here crosses between separately built wheels.  Objects travel as PyCapsules whose
 * names end in the ABI number, so a kernel built against another layout is refused at the hand-over
 * (PyCapsule_GetPointer fails) and never reads a wrong field.  Change a struct: change VNIC_ABI.
 */
#ifndef VNIC_H
#define VNIC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "vnic's kernels read virtio's little-endian words as they are: this machine is big-endian"
#endif

#define VNIC_ABI 2
#define VNIC_BURST_CAPSULE "vnic.burst/2"
#define VNIC_RX_RING_CAPSULE "vnic.rx_ring/2"
#define VNIC_MEMORY_CAPSULE "vnic.memory/2"

#define VNIC_BURST_MAX 256   /* frames of one burst */
#define VNIC_IOV_MAX 1024    /* segments of one frame: Linux's and FreeBSD's IOV_MAX */
#define VNIC_FRAME_MAX 65562 /* bytes of one frame: 64 KiB IP packet, Ethernet header, VLAN tags */
#define VNIC_ETH_HLEN 14
#define VNIC_LOOK 80 /* of a frame, for filters: Ethernet header, a VLAN tag, IPv4 with options */
#define VNIC_TAIL_MAX 64 /* of zeroes behind a frame: frame_min is at most 60, trailer_len 4 */

/* ---- frames and bursts ------------------------------------------------------------------- */

/* One Ethernet frame: destination address first, no FCS.  32 bytes, two to a cache line. */
struct vnic_frame {
	uint32_t first;  /* index of its first segment in vnic_burst.iov */
	uint32_t count;  /* number of segments */
	uint32_t len;    /* bytes in all; of a receive buffer: bytes that fit, then bytes written */
	uint32_t token;  /* the ring's own: which descriptor chain this is */
	uint8_t hdr[12]; /* struct virtio_net_hdr_v1, little-endian; num_buffers is the receiver's */
	uint32_t flags;  /* of a receive buffer that was filled: VNIC_LAST, and what accept noted */
};

#define VNIC_LAST 1u /* this buffer holds the end of its frame */

/* What a ring's accept answers: 0, or VNIC_ACCEPT, with what else is to be done, and in the upper
 * 24 bits a note of its own, which commit finds in .flags of each of the frame's buffers. */
#define VNIC_ACCEPT 1u
#define VNIC_STRIP_TAG 2u /* deliver it without the four bytes behind its two addresses */
#define VNIC_NOTE 0xFFFFFF00u

struct vnic_burst {
	uint32_t n;         /* frames in use */
	uint32_t n_iov;     /* segments in use */
	uint32_t n_max;     /* room for frames */
	uint32_t n_iov_max; /* room for segments */
	struct vnic_frame *frames;
	struct iovec *iov;
};

_Static_assert(sizeof(struct vnic_frame) == 32, "a frame's record is 32 bytes");

/* ---- the virtio-net header (Virtio 1.3, "Network Device", "Device Operation") -------------- */

struct vnic_hdr {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};

_Static_assert(sizeof(struct vnic_hdr) == 12, "a virtio-net header is 12 bytes");

#define VNIC_HDR_F_NEEDS_CSUM 1u
#define VNIC_HDR_F_DATA_VALID 2u

#define VNIC_GSO_NONE 0u
#define VNIC_GSO_TCPV4 1u
#define VNIC_GSO_TCPV6 4u
#define VNIC_GSO_UDP_L4 5u
#define VNIC_GSO_ECN 0x80u

/* Feature bits that a header can ask of a receiver (virtio's own numbers). */
#define VNIC_GUEST_CSUM (1ull << 1)
#define VNIC_GUEST_TSO4 (1ull << 7)
#define VNIC_GUEST_TSO6 (1ull << 8)
#define VNIC_GUEST_ECN (1ull << 9)
#define VNIC_GUEST_USO (1ull << 54 | 1ull << 55)

/* What a frame's header asks of who takes the frame as it is: GUEST_* bits; 0 for a plain frame. */
static inline uint64_t
vnic_hdr_needs(const uint8_t bytes[12])
{
	struct vnic_hdr h;
	uint64_t needs = 0;

	memcpy(&h, bytes, sizeof(h));
	if (h.flags & VNIC_HDR_F_NEEDS_CSUM)
		needs |= VNIC_GUEST_CSUM;
	switch (h.gso_type & ~VNIC_GSO_ECN) {
	case VNIC_GSO_TCPV4:
		needs |= VNIC_GUEST_TSO4;
		break;
	case VNIC_GSO_TCPV6:
		needs |= VNIC_GUEST_TSO6;
		break;
	case VNIC_GSO_UDP_L4:
		needs |= VNIC_GUEST_USO;
		break;
	}
	if (h.gso_type & VNIC_GSO_ECN)
		needs |= VNIC_GUEST_ECN;
	return needs;
}

/* Makes a header that came from outside fit to be passed on, or answers -1.  Fit: the checksum
 * field lies in the frame, a frame to be segmented says how, and nothing is in it that a receiver
 * might not know. */
static inline int
vnic_hdr_check(uint8_t bytes[12], uint32_t len)
{
	struct vnic_hdr h;

	memcpy(&h, bytes, sizeof(h));
	h.flags &= VNIC_HDR_F_NEEDS_CSUM | VNIC_HDR_F_DATA_VALID;
	h.num_buffers = 0;
	if (h.flags & VNIC_HDR_F_NEEDS_CSUM) {
		if ((uint32_t)h.csum_start + h.csum_offset + 2 > len)
			return -1;
	} else
		h.csum_start = h.csum_offset = 0;
	switch (h.gso_type & ~VNIC_GSO_ECN) {
	case VNIC_GSO_NONE:
		if (h.gso_type != VNIC_GSO_NONE)
			return -1;
		h.hdr_len = h.gso_size = 0;
		break;
	case VNIC_GSO_TCPV4:
	case VNIC_GSO_TCPV6:
	case VNIC_GSO_UDP_L4:
		/* Each segment gets a checksum, so where it goes must be known. */
		if (h.gso_size == 0 || !(h.flags & VNIC_HDR_F_NEEDS_CSUM) || h.hdr_len > len)
			return -1;
		break;
	default: /* UDP fragmentation (UFO) is never offered */
		return -1;
	}
	memcpy(bytes, &h, sizeof(h));
	return 0;
}

/* Whether nothing is asked: all fields zero but csum_offset and num_buffers. */
static inline int
vnic_hdr_is_plain(const uint8_t bytes[12])
{
	uint64_t first;

	memcpy(&first, bytes, sizeof(first));
	return first == 0;
}

/* ---- receive buffers ----------------------------------------------------------------------- */

/* What a frontend's kernel gives to core's Room: its ring of empty buffers, as three verbs.
 *
 * reserve appends up to n posted buffers to `buffers` (oldest first, len = bytes that fit) and
 * returns how many; it goes on where it stopped, and changes nothing that the guest can see.
 * commit takes the first n reserved ones as used: buffers[i].len bytes were written, the frame's
 * header is in .hdr of its first buffer, VNIC_LAST marks its last.  rollback forgets all that is
 * reserved and not committed.  accept, if not NULL, sees the first bytes of each frame (VNIC_LOOK,
 * if it has them) and the length of what will be delivered of it at once: of a frame that is to be
 * cut into segments, the longest segment's.  It answers 0 to drop the frame, and counts why; it may
 * be asked twice about one frame that it has accepted.
 *
 * A buffer of no bytes is one to be passed over: it is committed, with nothing in it, among those
 * of the frame that comes next.
 *
 * All are called with the loop's lock, perhaps without the GIL; none may touch a Python object.
 */
struct vnic_rx_ring {
	void *ring;
	uint32_t (*reserve)(void *ring, struct vnic_burst *buffers, uint32_t n);
	void (*commit)(void *ring, const struct vnic_frame *buffers, uint32_t n);
	void (*rollback)(void *ring);
	uint32_t (*accept)(void *ring, const uint8_t *start, uint32_t n, uint32_t len);
	uint64_t offloads;   /* GUEST_* feature bits: what the guest's driver takes as it is */
	uint32_t n_max;      /* the most buffers that can ever be posted at once */
	uint32_t header_len; /* bytes of virtio-net header in front of each frame: 12, 10 or 0; with 0,
	                        .hdr may say DATA_VALID whatever the offloads: the ring passes it on */
	uint32_t mergeable;  /* non-zero: a frame may take several buffers */
	uint32_t frame_min;  /* a shorter frame gets zeroes behind it, up to here: Ethernet's 60, or 0 */
	uint32_t trailer_len; /* and so many behind that, up to 4: an FCS that nobody computed */
};

/* ---- guest memory -------------------------------------------------------------------------- */

#define VNIC_REGIONS_MAX 512 /* QEMU has at most 509 memory slots over vhost-user */
#define VNIC_READ 1u
#define VNIC_WRITE 2u

struct vnic_region {
	uint64_t gpa;    /* first guest-physical address */
	uint64_t end;    /* one past the last */
	uint64_t delta;  /* hva - gpa, modulo 2^64 */
	uint32_t access; /* VNIC_READ | VNIC_WRITE */
	uint32_t pad;
};

/* Regions sorted by gpa, disjoint.  Changed only between bursts, under the loop's lock. */
struct vnic_memory {
	uint32_t n;
	uint32_t last; /* where the last look-up ended: a hint, checked before use */
	struct vnic_region regions[VNIC_REGIONS_MAX];
};

static inline const struct vnic_region *
vnic_region_of(struct vnic_memory *m, uint64_t gpa)
{
	uint32_t hint = m->last, lo = 0, hi = m->n;

	if (__builtin_expect(hint < hi, 1)) {
		const struct vnic_region *r = &m->regions[hint];
		if (__builtin_expect(gpa >= r->gpa && gpa < r->end, 1))
			return r;
	}
	while (lo < hi) {
		uint32_t mid = (lo + hi) / 2;
		const struct vnic_region *r = &m->regions[mid];
		if (gpa < r->gpa)
			hi = mid;
		else if (gpa >= r->end)
			lo = mid + 1;
		else {
			m->last = mid;
			return r;
		}
	}
	return NULL;
}

/* The hva of [gpa, gpa + len), which must lie in one region; NULL otherwise.  A ring is looked up
 * like this.  `len <= end - gpa` can't overflow, because gpa < end. */
static inline void *
vnic_translate(struct vnic_memory *m, uint64_t gpa, uint64_t len, uint32_t access)
{
	const struct vnic_region *r = vnic_region_of(m, gpa);

	if (r == NULL || len > r->end - gpa || (r->access & access) != access)
		return NULL;
	return (void *)(uintptr_t)(gpa + r->delta);
}

/* The same for a buffer, which may run on into the next region: appends a segment per region to
 * iov[*n], up to n_max.  0, or -1 where a byte of it is not mapped, -2 where there are too many. */
static inline int
vnic_translate_segments(struct vnic_memory *m, uint64_t gpa, uint64_t len, uint32_t access,
    struct iovec *iov, uint32_t *n, uint32_t n_max)
{
	while (len != 0) {
		const struct vnic_region *r = vnic_region_of(m, gpa);
		uint64_t run;

		if (r == NULL || (r->access & access) != access)
			return -1;
		if (*n >= n_max)
			return -2;
		run = r->end - gpa;
		if (__builtin_expect(run > len, 1))
			run = len;
		iov[*n].iov_base = (void *)(uintptr_t)(gpa + r->delta);
		iov[*n].iov_len = run;
		(*n)++;
		gpa += run;
		len -= run;
	}
	return 0;
}

/* ---- ordering and copying ------------------------------------------------------------------ */

static inline uint16_t vnic_load_acquire16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint16_t vnic_load16(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t vnic_load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t vnic_load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void vnic_store_release16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void vnic_store16(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void vnic_store_release64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void vnic_store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void vnic_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void vnic_prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

/* Fetches a line to be written.  The builtin makes a plain fetch of it on x86-64's baseline, and the
 * store that follows has to wait for the line's other owner after all; where prefetchw is not known
 * it is a no-op. */
static inline void
vnic_prefetch_write(const void *p)
{
#ifdef __x86_64__
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
#else
	__builtin_prefetch(p, 1, 3);
#endif
}

/* memmove, as a guest's buffers may overlap; what small frames need is inlined: two overlapping
 * moves instead of a call. */
static inline void
vnic_copy(void *to, const void *from, size_t len)
{
	char *d = (char *)to;
	const char *s = (const char *)from;
	char head[64], tail[64];

	if (len > 128 || len < 16) {
		memmove(d, s, len);
	} else if (len > 64) {
		memcpy(head, s, 64);
		memcpy(tail, s + len - 64, 64);
		memcpy(d, head, 64);
		memcpy(d + len - 64, tail, 64);
	} else if (len >= 32) {
		memcpy(head, s, 32);
		memcpy(tail, s + len - 32, 32);
		memcpy(d, head, 32);
		memcpy(d + len - 32, tail, 32);
	} else {
		memcpy(head, s, 16);
		memcpy(tail, s + len - 16, 16);
		memcpy(d, head, 16);
		memcpy(d + len - 16, tail, 16);
	}
}

/* Reads a byte of each page of the segments.  A system call answers EFAULT for guest memory whose
 * file was cut short, where a plain access is contained (see memory_kernel): after this the call can
 * be made again, and the memory knows. */
static inline void
vnic_touch_segments(const struct iovec *iov, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const volatile char *base = (const volatile char *)iov[i].iov_base;

		for (size_t at = 0; at < iov[i].iov_len; at += 4096)
			(void)base[at];
		if (iov[i].iov_len != 0)
			(void)base[iov[i].iov_len - 1];
	}
}

/* A place in a run of segments. */
struct vnic_cursor {
	const struct iovec *iov;
	uint32_t left; /* segments from iov on */
	size_t off;    /* bytes of *iov already passed */
};

static inline void
vnic_cursor_advance(struct vnic_cursor *c, size_t len)
{
	while (c->left != 0 && len >= c->iov->iov_len - c->off) {
		len -= c->iov->iov_len - c->off;
		c->iov++;
		c->left--;
		c->off = 0;
	}
	if (c->left != 0)
		c->off += len;
}

/* Copies from segments to segments and advances both; returns how many bytes there were and fitted. */
static inline size_t
vnic_copy_segments(struct vnic_cursor *to, struct vnic_cursor *from, size_t len)
{
	size_t done = 0;

	while (done < len && from->left != 0 && to->left != 0) {
		size_t run = from->iov->iov_len - from->off;
		size_t fits = to->iov->iov_len - to->off;
		if (run > fits)
			run = fits;
		if (run > len - done)
			run = len - done;
		memmove((char *)to->iov->iov_base + to->off,
		    (const char *)from->iov->iov_base + from->off, run);
		done += run;
		vnic_cursor_advance(from, run);
		vnic_cursor_advance(to, run);
	}
	return done;
}

/* Copies len bytes out of the segments and advances; returns how many there were. */
static inline size_t
vnic_gather(struct vnic_cursor *from, void *to, size_t len)
{
	struct iovec iov = { to, len };
	struct vnic_cursor flat = { &iov, 1, 0 };

	return vnic_copy_segments(&flat, from, len);
}

/* Copies len bytes into the segments and advances; returns how many fitted. */
static inline size_t
vnic_scatter(struct vnic_cursor *to, const void *from, size_t len)
{
	struct iovec iov = { (void *)(uintptr_t)from, len };
	struct vnic_cursor flat = { &iov, 1, 0 };

	return vnic_copy_segments(to, &flat, len);
}

/* ---- the Internet checksum (RFC 1071) ------------------------------------------------------ */

/* Sums are kept over words in memory order, and so is what vnic_fold returns: store it as it is. */
static inline uint64_t
vnic_sum(const uint8_t *p, size_t n, uint64_t total)
{
	uint64_t word;
	uint32_t half;
	uint16_t pair;

	for (; n >= 8; p += 8, n -= 8) {
		memcpy(&word, p, 8);
		total += (uint32_t)word;
		total += word >> 32;
	}
	if (n >= 4) {
		memcpy(&half, p, 4);
		total += half;
		p += 4;
		n -= 4;
	}
	if (n >= 2) {
		memcpy(&pair, p, 2);
		total += pair;
		p += 2;
		n -= 2;
	}
	if (n != 0)
		total += p[0]; /* the missing byte is zero and stands behind: little-endian */
	return total;
}

static inline uint16_t
vnic_fold(uint64_t total)
{
	total = (uint32_t)total + (total >> 32);
	total = (uint32_t)total + (total >> 32);
	total = (total & 0xFFFF) + (total >> 16);
	total = (total & 0xFFFF) + (total >> 16);
	return (uint16_t)((total & 0xFFFF) + (total >> 16));
}

/* Adds len bytes from the cursor on; a segment that ends on an odd byte swaps what follows. */
static inline uint64_t
vnic_sum_segments(struct vnic_cursor at, size_t len, uint64_t total)
{
	int odd = 0;

	while (len != 0 && at.left != 0) {
		size_t run = at.iov->iov_len - at.off;
		uint64_t part;

		if (run > len)
			run = len;
		part = vnic_fold(vnic_sum((const uint8_t *)at.iov->iov_base + at.off, run, 0));
		if (odd)
			part = (part & 0xFF) << 8 | part >> 8;
		total += part;
		odd ^= run & 1;
		len -= run;
		vnic_cursor_advance(&at, run);
	}
	return total;
}

#endif
