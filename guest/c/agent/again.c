/*
 * Which calls are asked again when the host was away, and how (docs/guest-channel.md, "The link comes and goes"): those that change
 * nothing, and a request for a ticket, which carries an id by which the host knows it again.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "again.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

static bool has_verb(const char *line, const char *verb)
{
	size_t n = strlen(verb);
	return !strncmp(line, verb, n) && (line[n] == ' ' || line[n] == 0);
}

/* A random UUID (RFC 9562, version 4). */
static bool new_id(char *text, size_t size)
{
	uint8_t b[16];
	if (getrandom(b, sizeof b, 0) != sizeof b)
		return false;
	b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
	b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
	snprintf(text, size, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1], b[2], b[3], b[4], b[5], b[6],
		 b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
	return true;
}

bool again_keep(struct again *a, const char *line, size_t len)
{
	static const char *const harmless[] = {"ic_join", "wait_clones", "list_tickets", "read_ticket_info"};
	static const char request[] = "request_clone_ticket";
	char id[40];
	bool keep = false;
	*a = (struct again){.asked_ms = now_ms()};
	if (len >= sizeof a->line - sizeof id)
		return false;
	memcpy(a->line, line, len);
	for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
		keep |= has_verb(a->line, harmless[i]);
	if (has_verb(a->line, request) && new_id(id, sizeof id)) {
		a->line[len] = ' ';
		memcpy(a->line + len + 1, id, strlen(id) + 1);
		keep = true;
	}
	if (!keep)
		a->line[0] = 0;
	return keep;
}

size_t again_line(const struct again *a, char *line, size_t size)
{
	char ticket[64], count[32], deadline[32];
	int rest = 0;
	if (a->lost_ms && sscanf(a->line, "wait_clones %63s %31s %31s %n", ticket, count, deadline, &rest) == 3 && rest > 0 && deadline[0] != '-') {
		long long left = atoll(deadline) - (now_ms() - a->asked_ms);
		return (size_t)snprintf(line, size, "wait_clones %s %s %lld %s", ticket, count, left > 1 ? left : 1, a->line + rest);
	}
	return (size_t)snprintf(line, size, "%s", a->line);
}
