/*
 * libFuzzer target: the agent's frame decoder, fed in pieces. `npm run fuzz -- agent` builds and runs it (clang, libclang-rt).
 * What it must never do: read past the bytes there are, or say something else when the same bytes come in other pieces.
 */
#include "../agent/frame.h"

#include <stdlib.h>
#include <string.h>

/* Decodes what is in the queue; returns a sum over its frames, -1 for one that no honest peer sends. */
static int take(struct bytes *q, uint64_t *sum)
{
	struct frame f;
	size_t size;
	int found;
	while ((found = frame_peek(q, 0, &f, &size)) == 1) {
		if (f.len > FRAME_PAYLOAD_MAX || size != FRAME_HEADER + f.len || size > q->len)
			abort();
		*sum = *sum * 31 + f.type + f.id;
		for (uint32_t i = 0; i < f.len; i++)
			*sum = *sum * 31 + f.payload[i];
		bytes_drop(q, size);
	}
	return found;
}

static int feed(const uint8_t *data, size_t len, size_t piece, uint64_t *sum)
{
	struct bytes q = {0};
	int state = 0;
	for (size_t at = 0; at < len && state == 0; at += piece) {
		/* a copy that ends where the piece does, so that a sanitizer sees a read past it */
		if (!bytes_add(&q, data + at, len - at < piece ? len - at : piece))
			abort();
		state = take(&q, sum);
	}
	bytes_free(&q);
	return state;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint64_t whole = 0, pieces = 0;
	int a = feed(data, len, len ? len : 1, &whole);
	int b = feed(data, len, 7, &pieces);
	if (a != b || whole != pieces)
		abort();
	struct bytes q = {0};
	struct frame f;
	size_t size;
	if (len > FRAME_PAYLOAD_MAX)
		return 0;
	if (!frame_add(&q, FRAME_CALL, 5, data, len / 2, data + len / 2, len - len / 2) || frame_peek(&q, 0, &f, &size) != 1 ||
	    f.type != FRAME_CALL || f.id != 5 || f.len != len || (len && memcmp(f.payload, data, len)))
		abort();
	bytes_free(&q);
	return 0;
}
