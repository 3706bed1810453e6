// The contents of a test snapshot, known to whoever makes it (frozen-source.c) and to whoever checks it (fault-client.c).
// In a mixed snapshot the pages come in groups of 16: a hole, written zeros, data, data. In a dense one all are data.
#ifndef PAGE_PATTERN_H
#define PAGE_PATTERN_H
#include <stdint.h>

#define PAGE 4096
#define WORDS (PAGE / 4)

enum kind { HOLE, ZERO, DATA };

static inline enum kind pattern_kind(uint32_t page, int dense) {
  if (dense) return DATA;
  uint32_t group = (page / 16) % 4;
  return group == 0 ? HOLE : group == 1 ? ZERO : DATA;
}

// Never zero in its first word for page numbers below 2^31 and odd seeds. Seeds from 2^31 on make words that repeat in their page,
// so that it can be compressed; others don't.
static inline uint32_t pattern_word(uint32_t page, uint32_t word, uint32_t seed) {
  if (seed >> 31) word &= 63;
  return ((page + 1) * 2654435761u) ^ (word * 40503u) ^ (seed << 8);
}
#endif
