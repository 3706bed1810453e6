// Stands in for a frozen QEMU process: memory with a known pattern, a lease on a memserver, and nothing else to do.
//   frozen-source LEASE_SOCKET PAGES SEED mixed|dense      prints "PID HEXADDRESS", exits when the lease ends
//   frozen-source LEASE_SOCKET PAGES SEED over FILE        the same, a clone: maps FILE privately, reads every fifth page, writes
//                                                          every third
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "page-pattern.h"

static uint32_t *map_over(const char *file, uint32_t pages, uint32_t seed) {
  int fd = open(file, O_RDWR);
  volatile uint32_t *memory = mmap(0, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  if (fd < 0 || memory == MAP_FAILED) return MAP_FAILED;
  close(fd);
  for (uint32_t page = 0; page < pages; page += 5) (void)memory[(size_t)page * WORDS];
  for (uint32_t page = 0; page < pages; page += 3)
    for (uint32_t word = 0; word < WORDS; word++) memory[(size_t)page * WORDS + word] = pattern_word(page, word, seed);
  return (uint32_t *)memory;
}

int main(int argc, char **argv) {
  if (argc != 5 && argc != 6) return 2;
  uint32_t pages = strtoul(argv[2], 0, 10), seed = strtoul(argv[3], 0, 10);
  int dense = !strcmp(argv[4], "dense");
  uint32_t *memory = argc == 6 ? map_over(argv[5], pages, seed)
                               : mmap(0, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  madvise(memory, (size_t)pages * PAGE, MADV_NOHUGEPAGE);
  for (uint32_t page = 0; argc == 5 && page < pages; page++) {
    uint32_t *at = memory + (size_t)page * WORDS;
    enum kind kind = pattern_kind(page, dense);
    if (kind == ZERO) *(volatile uint32_t *)at = 0;
    for (uint32_t word = 0; kind == DATA && word < WORDS; word++) at[word] = pattern_word(page, word, seed);
  }
  int lease = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
  if (connect(lease, (void *)&address, sizeof address) != 0) return 1;
  dprintf(lease, "%d\n", getpid());
  printf("%d %lx\n", getpid(), (unsigned long)memory);
  fflush(stdout);
  char byte;
  while (read(lease, &byte, 1) > 0) continue;
  return 0;
}
