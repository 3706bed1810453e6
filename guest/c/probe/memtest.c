/*
 * sfmemtest [--writer] MIB SEED: memory whose every page can be checked after a fork.
 *
 * Fills MIB with the pattern of SEED, prints "filled", then obeys lines on stdin:
 *   clone N   forks; the master VM checks all pages and prints "master wrong=W ticket=T"; a clone checks, rewrites with the pattern of
 *             SEED+vmid, checks again, writes "VMID wrong=W pages=P" to /run/sfmemtest.VMID and sleeps for ever
 *   tree N D  the same, and each clone then forks N of its own, which do the same, D deep in all; a clone that has forked writes what a
 *             master VM prints, with its vmid in place of "master", to /run/sfmemtest.VMID.forked
 *   merge T   quit
 * With --writer a second thread rewrites another area (a quarter of MIB) all the while. It goes through the pages in order, again and
 * again, and writes the round's number into each; so at any instant one page at most is half-written and the rounds of all others are
 * known from its position. A page that says otherwise was not frozen with the CPU: it is counted as torn (" torn=X" in the output).
 */
#define _GNU_SOURCE
#include "probe.h"
#include "sf.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t *area, *stamped;
static size_t pages, stamped_pages;
static uint64_t seed;
/* Before a clone forks: whole generations do at once, and their hosts start QEMUs for all of them. */
#define PREPARE_S 3
static int me; /* vmid */
static void clone_all(int count, int depth);
static _Atomic uint64_t next_page; /* of the writer: pages written since it began */
static atomic_bool stop_writer, writer_stopped;

static void stamp(uint64_t *page, uint64_t index, uint64_t round)
{
	uint64_t sum = index ^ round, start = mix(index ^ mix(round));
	page[0] = index;
	page[1] = round;
	for (size_t w = 2; w < PAGE_WORDS - 1; w++)
		sum += page[w] = start + w;
	page[PAGE_WORDS - 1] = sum;
}

static bool stamp_ok(const uint64_t *page, uint64_t index, uint64_t round)
{
	uint64_t sum = index ^ round, start = mix(index ^ mix(round)), diff = page[0] ^ index;
	diff |= page[1] ^ round;
	for (size_t w = 2; w < PAGE_WORDS - 1; w++) {
		diff |= page[w] ^ (start + w);
		sum += page[w];
	}
	return diff == 0 && page[PAGE_WORDS - 1] == sum;
}

static void *writer(void *arg)
{
	for (;;) {
		while (atomic_load(&stop_writer)) {
			atomic_store(&writer_stopped, true);
			usleep(1000);
		}
		atomic_store(&writer_stopped, false);
		uint64_t n = atomic_load(&next_page), index = n % stamped_pages;
		stamp(stamped + index * PAGE_WORDS, index, n / stamped_pages);
		atomic_store(&next_page, n + 1);
	}
	return arg;
}

static void start_writer(void)
{
	pthread_t thread;
	stamped_pages = pages / 4;
	stamped = map_pages(stamped_pages);
	for (size_t i = 0; i < stamped_pages; i++)
		stamp(stamped + i * PAGE_WORDS, i, 0);
	atomic_store(&next_page, stamped_pages);
	if (pthread_create(&thread, NULL, writer, NULL) != 0) {
		fputs("sfmemtest: cannot start the writer\n", stderr);
		exit(1);
	}
}

/* The writer finishes the page it is in, with this copy's own CPU; then every page must be as its position says. */
static size_t count_torn(void)
{
	size_t torn = 0;
	if (!stamped)
		return 0;
	atomic_store(&stop_writer, true);
	while (!atomic_load(&writer_stopped))
		usleep(500);
	uint64_t n = atomic_load(&next_page);
	for (size_t i = 0; i < stamped_pages; i++)
		torn += !stamp_ok(stamped + i * PAGE_WORDS, i, n / stamped_pages - (i >= n % stamped_pages));
	atomic_store(&stop_writer, false);
	while (atomic_load(&writer_stopped))
		usleep(500);
	return torn;
}

static const char *torn_text(size_t torn)
{
	static char text[40];
	if (!stamped)
		return "";
	snprintf(text, sizeof text, " torn=%zu", torn);
	return text;
}

/* For whoever reads files: the whole line or no file. The master VM says it on its output. */
static void tell(const char *suffix, const char *line)
{
	char path[64], unfinished[80];
	snprintf(path, sizeof path, "/run/sfmemtest.%d%s", me, suffix);
	snprintf(unfinished, sizeof unfinished, "%s.new", path);
	FILE *f = me == 0 ? stdout : fopen(unfinished, "w");
	if (!f)
		return;
	fprintf(f, "%s\n", line);
	if (me == 0)
		return;
	fclose(f);
	rename(unfinished, path);
}

static void be_clone(int vmid, int count, int depth)
{
	char line[128];
	size_t torn = count_torn(), wrong = pattern_check(area, pages, seed);
	me = vmid;
	seed += (uint64_t)vmid;
	pattern_fill(area, pages, seed);
	wrong += pattern_check(area, pages, seed);
	snprintf(line, sizeof line, "%d wrong=%zu pages=%zu%s", vmid, wrong, pages, torn_text(torn));
	tell("", line);
	if (depth > 0)
		clone_all(count, depth);
	for (;;)
		pause();
}

/* depth: generations from here on. */
static void clone_all(int count, int depth)
{
	char line[256], who[16] = "master";
	struct sf_result *ticket = REQUEST_VM_TICKET(count), *res = NULL;
	if (ticket && ticket->rc.allowed_clones > 0) {
		sleep(me == 0 ? 0 : PREPARE_S);
		res = CLONE_MASTER(ticket->ticket);
	}
	if (res && res->vmid != me)
		be_clone(res->vmid, count, depth - 1);
	if (me != 0)
		snprintf(who, sizeof who, "%d", me);
	if (!res) {
		snprintf(line, sizeof line, "error %.200s", ticket && ticket->rc.allowed_clones < 1 ? "no clones were granted" : sf_last_error());
	} else {
		size_t torn = count_torn();
		snprintf(line, sizeof line, "%s wrong=%zu ticket=%s%s", who, pattern_check(area, pages, seed), ticket->ticket, torn_text(torn));
	}
	tell(".forked", line);
	FREE_SF_RES(res);
	FREE_SF_RES(ticket);
}

int sfmemtest(int argc, char **argv)
{
	char line[256];
	bool with_writer = argc > 1 && !strcmp(argv[1], "--writer");
	argv += with_writer;
	argc -= with_writer;
	pages = (size_t)number_arg("sfmemtest", argc > 1 ? argv[1] : NULL, 1, 1 << 20) * 256;
	seed = (uint64_t)number_arg("sfmemtest", argc > 2 ? argv[2] : NULL, 0, 1L << 62);
	area = map_pages(pages);
	pattern_fill(area, pages, seed);
	if (with_writer)
		start_writer();
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("filled");
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		int count, depth;
		if (sscanf(line, "clone %d", &count) == 1)
			clone_all(count, 1);
		else if (sscanf(line, "tree %d %d", &count, &depth) == 2)
			clone_all(count, depth);
		else if (!strncmp(line, "merge ", 6))
			printf(MERGE_MASTER(line + 6) == 0 ? "merged %s\n" : "error %s\n", line + 6);
		else if (!strcmp(line, "quit"))
			break;
		else
			puts("error unknown command");
	}
	return 0;
}
