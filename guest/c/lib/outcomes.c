/* sf_exit and sf_join: calls and replies with bytes behind their line (docs/guest-channel.md). */
#define _GNU_SOURCE
#include "sf.h"
#include "call.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES (64u * 1024)
/* On the stack of whatever thread exits. */
#define FILE_CHUNK_BYTES (16u * 1024)
#define LINE_MAX_BYTES (64u * 1024)
/* A result has less; so a size that makes no sense cannot overflow anything. */
#define SIZE_MAX_BYTES 0xffffffffu
#define MILLISECONDS_MAX 1e15

/* ---- reading: lines and bytes of one connection ---- */

struct reader {
	int fd;
	size_t start, end;
	/* Of the reply's bytes, still to be taken from the buffer or the connection; before its line: no bound. */
	unsigned long long left;
	char data[LINE_MAX_BYTES];
};

static sf_outcome *nonsense(void)
{
	sf_fail("internal: the agent's answer makes no sense");
	return NULL;
}

/* More into the buffer; false at the end of the connection, or when the buffer is full. */
static bool reader_fill(struct reader *r)
{
	if (r->start > 0) {
		memmove(r->data, r->data + r->start, r->end - r->start);
		r->end -= r->start;
		r->start = 0;
	}
	ssize_t n;
	do
		n = recv(r->fd, r->data + r->end, sizeof r->data - r->end, 0);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		r->end += (size_t)n;
	return n > 0;
}

/* A line without its newline, valid until the next read; NULL with a last error. */
static char *reader_line(struct reader *r)
{
	for (;;) {
		char *line = r->data + r->start, *newline = memchr(line, '\n', r->end - r->start);
		if (newline && (unsigned long long)(newline - line) < r->left) {
			*newline = 0;
			r->left -= (unsigned long long)(newline - line) + 1;
			r->start = (size_t)(newline - r->data) + 1;
			return line;
		}
		if (newline || r->left <= r->end - r->start) {
			nonsense(); /* no line ends within what was announced */
			return NULL;
		}
		if (!reader_fill(r)) {
			sf_fail("interrupted: the SnowFlock agent closed the connection; ask again");
			return NULL;
		}
	}
}

static bool reader_bytes(struct reader *r, char *to, size_t len)
{
	size_t have = r->end - r->start;
	if (len > r->left) {
		nonsense();
		return false;
	}
	r->left -= len;
	if (have > len)
		have = len;
	memcpy(to, r->data + r->start, have);
	r->start += have;
	while (have < len) {
		ssize_t n = recv(r->fd, to + have, len - have, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			sf_fail("interrupted: the SnowFlock agent closed the connection; ask again");
			return false;
		}
		have += (size_t)n;
	}
	return true;
}

/* A connection with the line sent; NULL with a last error. */
static struct reader *open_call(const char *line)
{
	struct reader *r = malloc(sizeof *r);
	if (!r) {
		sf_fail("internal: out of memory");
		return NULL;
	}
	r->start = r->end = 0;
	r->left = ~0ULL;
	r->fd = sf_connect();
	if (r->fd >= 0 && sf_send_all(r->fd, line, strlen(line)))
		return r;
	if (r->fd >= 0) {
		close(r->fd);
		sf_fail("unavailable: the SnowFlock agent closed the connection");
	}
	free(r);
	return NULL;
}

static void close_call(struct reader *r)
{
	close(r->fd);
	free(r);
}

/* ---- exit ---- */

/* The reply has come, so nobody wants the rest. */
static bool answered(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	return poll(&p, 1, 0) > 0;
}

/* Of the result, from memory or (data NULL) from a file; false with a last error. */
static bool send_result(int fd, const char *data, int file, size_t len)
{
	char chunk[FILE_CHUNK_BYTES];
	while (len > 0 && !answered(fd)) {
		size_t most = data ? CHUNK_BYTES : sizeof chunk, n = len < most ? len : most;
		if (!data) {
			ssize_t got = read(file, chunk, n);
			if (got < 0 && errno == EINTR)
				continue;
			if (got <= 0) {
				sf_fail("bad-request: the file of the result %s while it was sent",
					got < 0 ? "cannot be read" : "became shorter");
				return false;
			}
			n = (size_t)got;
		}
		if (!sf_send_all(fd, data ? data : chunk, n))
			return true; /* the reply, or its absence, says why */
		data = data ? data + n : NULL;
		len -= n;
	}
	return true;
}

static int exit_with(int status, const char *data, int file, size_t len)
{
	char line[64];
	if (len > SIZE_MAX_BYTES) {
		sf_fail("result-too-large: a result has at most %u bytes, this one %zu", SIZE_MAX_BYTES, len);
		return -1;
	}
	if (len > 0)
		snprintf(line, sizeof line, "ic_exit %d +%zu\n", status, len);
	else
		snprintf(line, sizeof line, "ic_exit %d\n", status);
	struct reader *r = open_call(line);
	if (!r)
		return -1;
	char *reply = send_result(r->fd, data, file, len) ? reader_line(r) : NULL;
	int rc = reply && sf_parse_reply(reply) ? 0 : -1;
	close_call(r);
	return rc;
}

int sf_exit(int status, const void *data, size_t len)
{
	if (len > 0 && !data) {
		sf_fail("bad-request: a result of %zu bytes without any data", len);
		return -1;
	}
	return exit_with(status, data ? data : "", -1, len);
}

/* All that can be read of something without a size, allocated; NULL with a last error. */
static char *read_all(int file, size_t *len)
{
	size_t cap = CHUNK_BYTES;
	char *data = malloc(cap);
	*len = 0;
	while (data) {
		ssize_t n = read(file, data + *len, cap - *len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n == 0)
			return data;
		if (n < 0) {
			sf_fail("bad-request: the result cannot be read: %s", strerror(errno));
			free(data);
			return NULL;
		}
		*len += (size_t)n;
		if (*len < cap)
			continue;
		char *more = cap < SIZE_MAX_BYTES ? realloc(data, cap *= 2) : NULL;
		if (!more)
			break;
		data = more;
	}
	free(data);
	sf_fail("result-too-large: the result does not fit into memory");
	return NULL;
}

int sf_exit_file(int status, const char *path)
{
	struct stat st;
	int rc = -1, file = path ? open(path, O_RDONLY | O_CLOEXEC) : (errno = EFAULT, -1);
	if (file < 0 || fstat(file, &st) < 0) {
		sf_fail("bad-request: the file of the result, '%s': %s", path ? path : "(null)", strerror(errno));
	} else if (S_ISREG(st.st_mode) && st.st_size > 0) {
		rc = exit_with(status, NULL, file, (size_t)st.st_size);
	} else {
		/* What has no size: a pipe, a device, a file of /proc. */
		size_t len;
		char *data = read_all(file, &len);
		if (data)
			rc = exit_with(status, data, -1, len);
		free(data);
	}
	if (file >= 0)
		close(file);
	return rc;
}

/* ---- join ---- */

void sf_free_outcomes(sf_outcome *outcomes)
{
	for (sf_outcome *next; outcomes; outcomes = next) {
		next = outcomes->next;
		free(outcomes->reason);
		free(outcomes->data);
		free(outcomes);
	}
}

/* One record: "VMID HOW STATUS SIZE REASON", and the bytes. */
static sf_outcome *read_outcome(struct reader *r)
{
	static const char *const names[] = {[SF_EXITED] = "exited", [SF_ENDED] = "ended", [SF_LOST] = "lost"};
	char how[16];
	int vmid, status, reason = 0, kind = 0;
	unsigned long long size;
	char *line = reader_line(r);
	if (!line)
		return NULL;
	if (sscanf(line, "%d %15s %d %llu %n", &vmid, how, &status, &size, &reason) < 4 || !reason || size > SIZE_MAX_BYTES)
		return nonsense();
	while (kind < 3 && strcmp(how, names[kind]))
		kind++;
	if (kind == 3)
		return nonsense();
	sf_outcome *o = calloc(1, sizeof *o);
	char *data = malloc((size_t)size + 1), *text = strdup(line + reason);
	if (!o || !data || !text) {
		sf_fail("internal: out of memory for the result of VM %d, %llu bytes", vmid, size);
		free(data);
		free(text);
		free(o);
		return NULL;
	}
	*o = (sf_outcome){.vmid = vmid, .how = (sf_how)kind, .status = status, .reason = text, .data = data, .size = (size_t)size};
	data[size] = 0;
	if (reader_bytes(r, data, (size_t)size))
		return o;
	sf_free_outcomes(o);
	return NULL;
}

static sf_outcome *read_outcomes(struct reader *r)
{
	int count;
	sf_outcome *first = NULL, **tail = &first;
	char *line = reader_line(r), *words = line ? sf_parse_reply(line) : NULL;
	if (!words)
		return NULL;
	if (sscanf(words, "%d +%llu", &count, &r->left) != 2 || count < 1)
		return nonsense();
	for (int i = 0; i < count; i++) {
		*tail = read_outcome(r);
		if (!*tail) {
			sf_free_outcomes(first);
			return NULL;
		}
		tail = &(*tail)->next;
	}
	return first;
}

/* A limit as a word of the call; false if it makes no sense. */
static bool limit_word(char *word, size_t size, const char *name, double value)
{
	if (!(value >= 0 && value <= MILLISECONDS_MAX)) {
		sf_fail("bad-request: %s must be 0 or more, not %g", name, value);
		return false;
	}
	if (value > 0)
		snprintf(word, size, "%.0f", value < 1 ? 1 : value);
	else
		snprintf(word, size, "-");
	return true;
}

sf_outcome *sf_join(const char *ticket, const sf_join_options *options)
{
	static const sf_join_options none;
	const sf_join_options *o = options ? options : &none;
	char line[256], count[32], deadline[32], seconds[32], bytes[32];
	if (!sf_ticket_ok(ticket) || !limit_word(count, sizeof count, "count", o->count) ||
	    !limit_word(deadline, sizeof deadline, "deadline", o->deadline * 1000) ||
	    !limit_word(seconds, sizeof seconds, "budget_seconds", o->budget_seconds * 1000) ||
	    !limit_word(bytes, sizeof bytes, "budget_bytes", (double)o->budget_bytes))
		return NULL;
	snprintf(line, sizeof line, "wait_clones %s %s %s %s %s\n", ticket, count, deadline, seconds, bytes);
	struct reader *r = open_call(line);
	if (!r)
		return NULL;
	sf_outcome *outcomes = read_outcomes(r);
	close_call(r);
	/* Only now, so that nothing is lost if this program is. */
	if (!outcomes || MERGE_MASTER((char *)(size_t)ticket) == 0)
		return outcomes;
	sf_free_outcomes(outcomes);
	return NULL;
}
