/* A call that outlives its link: what is asked again on the next one. */
#ifndef SF_AGAIN_H
#define SF_AGAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Every such call is shorter. */
#define AGAIN_MAX_BYTES 256
/* For so long the host may be away. */
#define AGAIN_WAIT_MS (10 * 60 * 1000)

struct again {
	char line[AGAIN_MAX_BYTES]; /* empty: the call is not repeated */
	int64_t asked_ms;
	int64_t lost_ms; /* when the link that it was asked on was lost; 0: that link is up */
};

/* For a new call. One that may be repeated is kept, with an id where twice must not be two; then its line is to be sent, else the caller's. */
bool again_keep(struct again *a, const char *line, size_t len);
/* The line for the next link: a deadline in it counts from the first time. */
size_t again_line(const struct again *a, char *line, size_t size);

#endif
