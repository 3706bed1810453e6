#include "frame.h"

#include <stdlib.h>
#include <string.h>

uint32_t get_le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

void put_le32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
	p[3] = (uint8_t)(v >> 24);
}

static bool bytes_reserve(struct bytes *q, size_t more)
{
	if (q->start + q->len + more <= q->cap)
		return true;
	if (q->start > 0) {
		memmove(q->data, q->data + q->start, q->len);
		q->start = 0;
		if (q->len + more <= q->cap)
			return true;
	}
	size_t cap = q->cap ? q->cap : 4096;
	while (cap < q->len + more)
		cap *= 2;
	uint8_t *data = realloc(q->data, cap);
	if (!data)
		return false;
	q->data = data;
	q->cap = cap;
	return true;
}

bool bytes_add(struct bytes *q, const void *data, size_t len)
{
	if (len == 0)
		return true;
	if (!bytes_reserve(q, len))
		return false;
	memcpy(q->data + q->start + q->len, data, len);
	q->len += len;
	return true;
}

void bytes_drop(struct bytes *q, size_t len)
{
	q->start += len;
	q->len -= len;
	if (q->len == 0)
		q->start = 0;
}

void bytes_free(struct bytes *q)
{
	free(q->data);
	memset(q, 0, sizeof *q);
}

static bool known_type(uint8_t type)
{
	return (type >= FRAME_HELLO && type <= FRAME_SETTLED) || (type >= FRAME_REPLY && type <= FRAME_REPLY_DATA) ||
	       type == FRAME_EXEC_CREDIT || type == FRAME_CALL_CREDIT;
}

int frame_peek(const struct bytes *q, size_t offset, struct frame *f, size_t *size)
{
	if (q->len < offset + 4)
		return 0;
	const uint8_t *p = bytes_head(q) + offset;
	uint32_t length = get_le32(p);
	if (length < FRAME_REST || length > FRAME_REST + FRAME_PAYLOAD_MAX)
		return -1;
	if (q->len < offset + 4 + length)
		return 0;
	if (!known_type(p[4]))
		return -1;
	f->type = p[4];
	f->id = get_le32(p + 8);
	f->payload = p + FRAME_HEADER;
	f->len = length - FRAME_REST;
	*size = 4 + (size_t)length;
	return 1;
}

bool frame_add(struct bytes *q, uint8_t type, uint32_t id, const void *a, size_t alen, const void *b, size_t blen)
{
	uint8_t head[FRAME_HEADER] = {0};
	if (alen + blen > FRAME_PAYLOAD_MAX || !bytes_reserve(q, FRAME_HEADER + alen + blen))
		return false;
	put_le32(head, (uint32_t)(FRAME_REST + alen + blen));
	head[4] = type;
	put_le32(head + 8, id);
	return bytes_add(q, head, sizeof head) && bytes_add(q, a, alen) && bytes_add(q, b, blen);
}
