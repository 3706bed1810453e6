/* Byte queues and the frames of the guest channel (docs/guest-channel.md). */
#ifndef SF_FRAME_H
#define SF_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_PAYLOAD_MAX 65536u
#define FRAME_HEADER 12u
#define FRAME_REST 8u

enum frame_type {
	FRAME_HELLO = 1,
	FRAME_CALL = 2,
	FRAME_HELD = 3,
	FRAME_IDENTIFIED = 4,
	FRAME_EXEC_OUT = 5,
	FRAME_EXEC_EXIT = 6,
	FRAME_CANCEL = 7,
	FRAME_CALL_DATA = 8,
	FRAME_SETTLED = 9,
	FRAME_REPLY = 17,
	FRAME_HOLD = 18,
	FRAME_IDENTITY = 19,
	FRAME_EXEC_START = 20,
	FRAME_EXEC_IN = 21,
	FRAME_EXEC_SIGNAL = 22,
	FRAME_REPLY_DATA = 23,
	FRAME_EXEC_CREDIT = 32,
	FRAME_CALL_CREDIT = 33,
};

/* A queue of bytes: data[start .. start+len). Grows on demand, never past the caller's limits. */
struct bytes {
	uint8_t *data;
	size_t start, len, cap;
};

/* Appends; false when memory is short (the queue is then unchanged). */
bool bytes_add(struct bytes *q, const void *data, size_t len);
void bytes_drop(struct bytes *q, size_t len);
void bytes_free(struct bytes *q);
static inline uint8_t *bytes_head(const struct bytes *q) { return q->data + q->start; }

/* One frame inside a queue; the payload points into it and lives until the queue changes. */
struct frame {
	uint8_t type;
	uint32_t id;
	const uint8_t *payload;
	uint32_t len;
};

/* 1: a frame starts at `offset` (size in *size); 0: not all of it is there; -1: no honest peer sends this. */
int frame_peek(const struct bytes *q, size_t offset, struct frame *f, size_t *size);

/* Appends a frame whose payload is a followed by b. */
bool frame_add(struct bytes *q, uint8_t type, uint32_t id, const void *a, size_t alen, const void *b, size_t blen);

uint32_t get_le32(const uint8_t *p);
void put_le32(uint8_t *p, uint32_t v);

#endif
