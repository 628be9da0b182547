/*
 * What a benchmark needs of the bare machine: how long a cache line takes from one core to another,
 * frames copied by memcpy and nothing else, and frames through a descriptor by one system call each.
 * Compiled when a benchmark starts (_native.py).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

enum { ROUND_TRIPS = 100 }; /* 6 to 50 µs: few are cut short by the scheduler */

static _Alignas(128) atomic_uint turn; /* alone: neighbouring lines are fetched in pairs */
static struct bounce { int cpu_a, cpu_b, n; double *ns; } todo;

static int
pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

static void *
echo(void *unused)
{
	pin(todo.cpu_b);
	for (unsigned at = 1; at < 2u * ROUND_TRIPS * todo.n; at += 2) {
		while (atomic_load_explicit(&turn, memory_order_acquire) != at)
			;
		atomic_store_explicit(&turn, at + 1, memory_order_release);
	}
	return unused;
}

static void *
bounce(void *unused)
{
	struct timespec from, to;
	unsigned at = 0;

	pin(todo.cpu_a);
	for (int i = 0; i < todo.n; i++) {
		clock_gettime(CLOCK_MONOTONIC, &from);
		for (int k = 0; k < ROUND_TRIPS; k++, at += 2) {
			atomic_store_explicit(&turn, at + 1, memory_order_release);
			while (atomic_load_explicit(&turn, memory_order_acquire) != at + 2)
				;
		}
		clock_gettime(CLOCK_MONOTONIC, &to);
		todo.ns[i] = ((to.tv_sec - from.tv_sec) * 1e9 + (to.tv_nsec - from.tv_nsec))
		    / (2 * ROUND_TRIPS);
	}
	return unused;
}

/* Fills ns[n] with one-way times; one caller at a time.  Nonzero: no threads to be had. */
int
line_latency(int cpu_a, int cpu_b, double *ns, int n)
{
	pthread_t a, b;

	atomic_store(&turn, 0);
	todo = (struct bounce){ cpu_a, cpu_b, n, ns };
	if (pthread_create(&a, NULL, bounce, NULL) != 0)
		return -1;
	if (pthread_create(&b, NULL, echo, NULL) != 0) {
		pthread_cancel(a);
		pthread_join(a, NULL);
		return -1;
	}
	pthread_join(a, NULL);
	pthread_join(b, NULL);
	return 0;
}

/* n buffers of len bytes, stride apart; a frame begins offset bytes into its first. */
struct slots { char *base; size_t n, stride, len, offset; };

/* Copies n frames of len bytes from one slot to one or several, round both rings from at[2] on. */
void
copy_frames(const struct slots *src, const struct slots *dst, size_t len, size_t n, size_t *at)
{
	for (size_t i = 0; i < n; i++) {
		const char *from = src->base + at[0] * src->stride + src->offset;
		size_t left = len, skip = dst->offset;

		at[0] = at[0] + 1 == src->n ? 0 : at[0] + 1;
		while (left != 0) {
			size_t run = left < dst->len - skip ? left : dst->len - skip;

			memcpy(dst->base + at[1] * dst->stride + skip, from, run);
			at[1] = at[1] + 1 == dst->n ? 0 : at[1] + 1;
			from += run;
			left -= run;
			skip = 0;
		}
	}
}

enum { HEADER_LEN = 12, PIECES_MAX = 64 }; /* a frame of 64 KiB in slots of 1 KiB */

/* Writes n frames of len bytes, a header in front of each, from the slots in turn, from *at on. */
size_t
write_frames(int fd, const struct slots *src, void *header, size_t header_len, size_t len, size_t n,
    size_t *at)
{
	for (size_t i = 0; i < n; i++) {
		struct iovec iov[2] = {
			{ header, header_len },
			{ src->base + *at * src->stride + src->offset, len },
		};

		*at = *at + 1 == src->n ? 0 : *at + 1;
		if (writev(fd, iov, 2) != (ssize_t)(header_len + len))
			return i;
	}
	return n;
}

/* Reads n frames of len bytes and their headers, each into as many slots as it takes, in turn. */
size_t
read_frames(int fd, const struct slots *dst, size_t len, size_t n, size_t *at)
{
	char header[HEADER_LEN];
	struct iovec iov[1 + PIECES_MAX] = { { header, HEADER_LEN } };

	for (size_t i = 0; i < n; i++) {
		size_t room = 0, skip = dst->offset;
		int k = 1;

		for (; room < len && k <= PIECES_MAX; k++) {
			iov[k].iov_base = dst->base + *at * dst->stride + skip;
			iov[k].iov_len = dst->len - skip;
			room += iov[k].iov_len;
			*at = *at + 1 == dst->n ? 0 : *at + 1;
			skip = 0;
		}
		if (readv(fd, iov, k) != (ssize_t)(HEADER_LEN + len))
			return i;
	}
	return n;
}
