/*
 * What a benchmark needs of the bare machine: how long a cache line takes from one core to another,
 * and frames copied by memcpy and nothing else.  Compiled when a benchmark starts (_native.py).
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
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
