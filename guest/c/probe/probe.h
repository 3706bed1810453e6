/* Programs that measure and test a VM from inside; one binary, told apart by its name. */
#ifndef SF_PROBE_H
#define SF_PROBE_H

#include <stddef.h>
#include <stdint.h>

int sfgap(int argc, char **argv);
int sftouch(int argc, char **argv);
int sfmemtest(int argc, char **argv);
int sfrandom(int argc, char **argv);
int sffork(int argc, char **argv);
int sfresult(int argc, char **argv);

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / 8)

/* A good 64-bit mix of x (splitmix64's finaliser, Steele et al. 2014). */
uint64_t mix(uint64_t x);
/* Fresh zero pages, or the program ends. */
uint64_t *map_pages(size_t pages);
/* Fills and checks `pages` pages with the pattern of a seed; the check counts pages with any wrong word. */
void pattern_fill(uint64_t *area, size_t pages, uint64_t seed);
size_t pattern_check(const uint64_t *area, size_t pages, uint64_t seed);
/* A number in [min, max], or the program ends with a usage error. */
long number_arg(const char *program, const char *text, long min, long max);

#endif
