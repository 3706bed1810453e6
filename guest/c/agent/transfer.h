/* The bytes that follow a call's line or a reply's, of one client. */
#ifndef SF_TRANSFER_H
#define SF_TRANSFER_H

#include "frame.h"

/* What either side may send of them before the other grants more. */
#define TRANSFER_WINDOW_BYTES (256u * 1024)

struct transfer {
	uint64_t up_left;   /* bytes of the call that the client still has to send */
	uint32_t up_credit; /* so many of them the host takes */
	bool up_unwanted;   /* the call is answered: what still comes is dropped */
	uint64_t down_left; /* bytes of the reply that the host still has to send */
	size_t down_queued; /* those that came and are in the client's output, at its end */
	uint32_t down_read; /* by the client, not yet granted again */
};

/* N of a line that ends in the word `+N`; 0 for any other. */
uint64_t transfer_announced(const char *line, size_t len);
/* A call was forwarded with so many bytes to follow, or (unwanted) was not. */
void transfer_begin(struct transfer *t, uint64_t bytes, bool unwanted);
/* Moves what has come of a call's bytes on to the host, as far as it may be sent; drops what nobody wants. */
void transfer_up(struct transfer *t, uint32_t call, struct bytes *in);
void transfer_credit(struct transfer *t, const struct frame *f);
/* Whether more of the call's bytes are to be read from the client. */
bool transfer_wants(const struct transfer *t);
/* Bytes of a reply into the client's output; false when no more will come, the host sends what it must not, or memory is short. */
bool transfer_down(struct transfer *t, const struct frame *f, struct bytes *out);
/* `sent` bytes of an output of `queued` have gone to the client: grants the host as many of them as were of the reply. */
void transfer_sent(struct transfer *t, uint32_t call, size_t sent, size_t queued);

#endif
