#define _GNU_SOURCE
#include "probe.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15u;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

uint64_t *map_pages(size_t pages)
{
	void *p = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	return p;
}

/* Each page has a starting value of its own and each word differs, so a page in the wrong place or a torn one is seen. */
static uint64_t page_start(uint64_t seed, size_t page) { return mix(seed * 0x100000001b3u ^ mix(page)); }
static uint64_t word_at(uint64_t start, size_t word) { return (start + word * 0x9e3779b97f4a7c15u) | 1; }

void pattern_fill(uint64_t *area, size_t pages, uint64_t seed)
{
	for (size_t p = 0; p < pages; p++) {
		uint64_t start = page_start(seed, p), *page = area + p * PAGE_WORDS;
		for (size_t w = 0; w < PAGE_WORDS; w++)
			page[w] = word_at(start, w);
	}
}

size_t pattern_check(const uint64_t *area, size_t pages, uint64_t seed)
{
	size_t wrong = 0;
	for (size_t p = 0; p < pages; p++) {
		uint64_t start = page_start(seed, p), diff = 0;
		const uint64_t *page = area + p * PAGE_WORDS;
		for (size_t w = 0; w < PAGE_WORDS; w++)
			diff |= page[w] ^ word_at(start, w);
		wrong += diff != 0;
	}
	return wrong;
}

long number_arg(const char *program, const char *text, long min, long max)
{
	char *end;
	errno = 0;
	long v = text ? strtol(text, &end, 0) : 0;
	if (!text || errno || end == text || *end || v < min || v > max) {
		fprintf(stderr, "%s: expected a number from %ld to %ld, not '%s'\n", program, min, max, text ? text : "");
		exit(2);
	}
	return v;
}
