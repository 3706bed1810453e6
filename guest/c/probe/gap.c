/*
 * sfgap SECONDS (0: until stdin ends): reads CLOCK_REALTIME without pause and prints the largest forward gap in microseconds since the
 * last print, each time a line comes on stdin and at the end. What a fork costs a program that runs, as that program sees it.
 */
#define _GNU_SOURCE
#include "probe.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static atomic_uint asked;
static atomic_bool ended;

static void *listen_stdin(void *arg)
{
	char chunk[256];
	ssize_t n;
	while ((n = read(0, chunk, sizeof chunk)) > 0)
		for (ssize_t i = 0; i < n; i++)
			if (chunk[i] == '\n')
				atomic_fetch_add(&asked, 1);
	atomic_store(&ended, true);
	return arg;
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int sfgap(int argc, char **argv)
{
	int64_t seconds = number_arg("sfgap", argc > 1 ? argv[1] : NULL, 0, 1000000);
	int64_t first = now_ns(), last = first, worst = 0;
	unsigned answered = 0;
	pthread_t thread;
	if (pthread_create(&thread, NULL, listen_stdin, NULL) != 0)
		return 1;
	while (seconds ? last - first < seconds * 1000000000 : !atomic_load_explicit(&ended, memory_order_relaxed)) {
		int64_t now = now_ns();
		if (now - last > worst)
			worst = now - last;
		last = now;
		if (atomic_load_explicit(&asked, memory_order_relaxed) != answered) {
			/* Read again: the gap asked about may lie between the last read and the question. */
			now = now_ns();
			if (now - last > worst)
				worst = now - last;
			answered++;
			printf("%lld\n", (long long)(worst / 1000));
			fflush(stdout);
			worst = 0;
			last = now_ns();
		}
	}
	printf("%lld\n", (long long)(worst / 1000));
	return 0;
}
