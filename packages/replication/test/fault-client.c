// Faults pages of a memtap's file in through a private mapping, as QEMU does, checks their contents and measures.
//   fault-client FILE SEED mixed|dense rand|seq|hole COUNT [first=N] [order=SEED] [drop] [write]
// rand: COUNT pages in random order; seq: COUNT pages from `first`; hole: random holes of a mixed snapshot.
// drop: drops the file from the page cache first. write: writes to each page instead of only reading it (and so copies it).
// Prints one line of JSON. Exit: 0, 1 wrong contents, 2 usage, 7 SIGBUS.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "page-pattern.h"

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static void on_bus(int signal) {
  (void)signal;
  static const char text[] = "{\"sigbus\":true}\n";
  if (write(1, text, sizeof text - 1) < 0) _exit(8);
  _exit(7);
}

static int page_is_right(const uint32_t *at, uint32_t page, uint32_t seed, int dense, int written) {
  int data = pattern_kind(page, dense) == DATA;
  for (uint32_t word = written ? 1 : 0; word < WORDS; word++)
    if (at[word] != (data ? pattern_word(page, word, seed) : 0)) return 0;
  return 1;
}

// The pages to touch, in order. Returns how many.
static uint32_t choose(uint32_t *order, uint32_t total, const char *mode, uint32_t first, long shuffle) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < total; i++) {
    uint32_t page = (first + i) % total;
    if (strcmp(mode, "hole") || pattern_kind(page, 0) == HOLE) order[n++] = page;
  }
  if (!strcmp(mode, "seq")) return n;
  srand48(shuffle);
  for (uint32_t i = n; i > 1; i--) {
    uint32_t j = lrand48() % i, t = order[i - 1];
    order[i - 1] = order[j];
    order[j] = t;
  }
  return n;
}

int main(int argc, char **argv) {
  if (argc < 6) return 2;
  uint32_t seed = strtoul(argv[2], 0, 10), count = strtoul(argv[5], 0, 10), first = 0;
  int dense = !strcmp(argv[3], "dense"), drop = 0, writes = 0;
  long shuffle = 42;
  for (int i = 6; i < argc; i++) {
    if (!strncmp(argv[i], "first=", 6)) first = strtoul(argv[i] + 6, 0, 10);
    else if (!strncmp(argv[i], "order=", 6)) shuffle = atol(argv[i] + 6);
    else if (!strcmp(argv[i], "drop")) drop = 1;
    else if (!strcmp(argv[i], "write")) writes = 1;
    else return 2;
  }
  signal(SIGBUS, on_bus);
  int fd = open(argv[1], O_RDWR | O_CLOEXEC);
  struct stat st;
  if (fd < 0 || fstat(fd, &st) != 0) return perror(argv[1]), 2;
  if (drop) posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  uint32_t total = st.st_size / PAGE;
  uint32_t *memory = mmap(0, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  uint32_t *order = malloc(total * 4ul), *latency = malloc(total * 4ul);
  if (memory == MAP_FAILED || !order || !latency) return 2;
  uint32_t n = choose(order, total, argv[4], first, shuffle);
  if (n > count) n = count;
  memset(latency, 1, total * 4ul);
  uint32_t wrong = 0;
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  uint64_t start = now_ns(), checking = 0;
  for (uint32_t i = 0; i < n; i++) {
    volatile uint32_t *at = memory + (size_t)order[i] * WORDS;
    uint64_t t0 = now_ns();
    if (writes) at[0] = 1;
    else (void)at[0];
    uint64_t t1 = now_ns();
    latency[i] = t1 - t0;
    wrong += !page_is_right((const uint32_t *)at, order[i], seed, dense, writes);
    checking += now_ns() - t1;
  }
  uint64_t elapsed = now_ns() - start - checking;
  getrusage(RUSAGE_SELF, &after);
  if (n == 0) return 2;
  qsort(latency, n, 4, by_value);
  printf("{\"pages\":%u,\"wrong\":%u,\"minUs\":%.2f,\"medianUs\":%.2f,\"p90Us\":%.2f,\"p99Us\":%.2f,\"maxUs\":%.1f,"
         "\"totalMs\":%.2f,\"mbPerS\":%.1f,\"majorFaults\":%ld,\"minorFaults\":%ld}\n",
         n, wrong, latency[0] / 1e3, latency[n / 2] / 1e3, latency[n * 9ul / 10] / 1e3, latency[n * 99ul / 100] / 1e3,
         latency[n - 1] / 1e3, elapsed / 1e6, n * 4096.0 / 1048576 / (elapsed / 1e9), after.ru_majflt - before.ru_majflt,
         after.ru_minflt - before.ru_minflt);
  return wrong != 0;
}
