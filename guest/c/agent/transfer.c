/*
 *   client --line +N, N bytes--> [in] --CALL_DATA, as the host grants--> host
 *   host --REPLY ok ... +N, REPLY_DATA, as the agent grants--> [out] --> client
 *
 * Neither queue holds more than a window.
 */
#include "agent.h"
#include "transfer.h"

#include <string.h>

/* Grants are gathered to this size, so that a large result does not cost a frame per read. */
#define GRANT_BYTES (32u * 1024)

uint64_t transfer_announced(const char *line, size_t len)
{
	size_t at = len;
	uint64_t bytes = 0;
	while (at > 0 && line[at - 1] >= '0' && line[at - 1] <= '9')
		at--;
	if (at < 2 || at == len || len - at > 10 || line[at - 1] != '+' || line[at - 2] != ' ')
		return 0;
	for (; at < len; at++)
		bytes = bytes * 10 + (uint64_t)(line[at] - '0');
	return bytes;
}

void transfer_begin(struct transfer *t, uint64_t bytes, bool unwanted)
{
	*t = (struct transfer){.up_left = bytes, .up_credit = TRANSFER_WINDOW_BYTES, .up_unwanted = unwanted};
}

void transfer_up(struct transfer *t, uint32_t call, struct bytes *in)
{
	while (t->up_left > 0 && in->len > 0) {
		size_t n = in->len < t->up_left ? in->len : (size_t)t->up_left;
		if (!t->up_unwanted) {
			if (n > FRAME_PAYLOAD_MAX)
				n = FRAME_PAYLOAD_MAX;
			if (n > t->up_credit)
				n = t->up_credit;
			if (n == 0 || port_busy())
				return;
			port_send(FRAME_CALL_DATA, call, bytes_head(in), n, NULL, 0);
			t->up_credit -= (uint32_t)n;
		}
		bytes_drop(in, n);
		t->up_left -= n;
	}
}

void transfer_credit(struct transfer *t, const struct frame *f)
{
	if (f->len != 4)
		return;
	uint64_t credit = (uint64_t)t->up_credit + get_le32(f->payload);
	t->up_credit = credit > TRANSFER_WINDOW_BYTES ? TRANSFER_WINDOW_BYTES : (uint32_t)credit;
}

bool transfer_wants(const struct transfer *t)
{
	return t->up_left > 0 && (t->up_unwanted || (t->up_credit > 0 && !port_busy()));
}

bool transfer_down(struct transfer *t, const struct frame *f, struct bytes *out)
{
	if (f->len == 0 || f->len > t->down_left || t->down_queued + f->len > TRANSFER_WINDOW_BYTES || !bytes_add(out, f->payload, f->len))
		return false;
	t->down_left -= f->len;
	t->down_queued += f->len;
	return true;
}

void transfer_sent(struct transfer *t, uint32_t call, size_t sent, size_t queued)
{
	uint8_t more[4];
	size_t line = queued - t->down_queued;
	if (sent <= line)
		return;
	t->down_queued -= sent - line;
	t->down_read += (uint32_t)(sent - line);
	if (t->down_left == 0 || t->down_read < GRANT_BYTES)
		return;
	put_le32(more, t->down_read);
	t->down_read = 0;
	port_send(FRAME_CALL_CREDIT, call, more, sizeof more, NULL, 0);
}
