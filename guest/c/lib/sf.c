/* libsf: each call is one connection to the agent socket, one line out and one line back (docs/guest-channel.md). */
#define _GNU_SOURCE
#include "sf.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/snowflock/agent.sock"
#define REPLY_MAX (65536 + 2)

static __thread char last_error[512];

const char *sf_last_error(void) { return last_error; }

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(last_error, sizeof last_error, format, args);
	va_end(args);
}

static int connect_agent(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	const char *path = getenv("SNOWFLOCK_AGENT_SOCKET");
	if (!path || !*path)
		path = DEFAULT_SOCKET;
	if (strlen(path) >= sizeof addr.sun_path) {
		fail("bad-request: the path of the agent socket is too long");
		return -1;
	}
	strcpy(addr.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0)
		return fd;
	fail("unavailable: cannot reach the SnowFlock agent at %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

static bool send_all(int fd, const char *text, size_t len)
{
	while (len > 0) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		text += n;
		len -= (size_t)n;
	}
	return true;
}

/* One line without its newline, allocated; NULL when the connection ends first or the line has no end. */
static char *read_line(int fd)
{
	size_t len = 0, cap = 256;
	char *line = malloc(cap);
	while (line) {
		ssize_t n = recv(fd, line + len, cap - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		char *end = memchr(line + len, '\n', (size_t)n);
		len += (size_t)n;
		if (end) {
			*end = 0;
			return line;
		}
		if (len == cap) {
			if (cap >= REPLY_MAX)
				break;
			cap = cap * 2 > REPLY_MAX ? REPLY_MAX : cap * 2;
			char *more = realloc(line, cap);
			if (!more)
				break;
			line = more;
		}
	}
	free(line);
	return NULL;
}

/* What follows "ok" and at most one space, inside *line (which the caller frees); NULL after an error. */
static char *parse_reply(char *line)
{
	if (!strcmp(line, "ok"))
		return line + 2;
	if (!strncmp(line, "ok ", 3))
		return line + 3;
	if (!strncmp(line, "err ", 4)) {
		char *code = line + 4, *space = strchr(code, ' ');
		if (space)
			*space = 0;
		fail("%s: %s", code, space ? space + 1 : "the call failed");
	} else {
		fail("internal: the agent's answer makes no sense");
	}
	return NULL;
}

/* Makes a call; the words of its answer, or NULL. Free *line in both cases. */
static char *call(char **line, const char *request)
{
	*line = NULL;
	last_error[0] = 0;
	int fd = connect_agent();
	if (fd < 0)
		return NULL;
	if (send_all(fd, request, strlen(request)))
		*line = read_line(fd);
	close(fd);
	if (*line)
		return parse_reply(*line);
	fail("unavailable: the SnowFlock agent closed the connection");
	return NULL;
}

static bool ticket_ok(const char *ticket)
{
	size_t n = ticket ? strlen(ticket) : 0;
	if (n == 0 || n > SF_TICKET_SIZE) {
		fail("bad-request: not a ticket");
		return false;
	}
	for (size_t i = 0; i < n; i++)
		if (ticket[i] <= ' ' || ticket[i] > '~') {
			fail("bad-request: not a ticket");
			return false;
		}
	return true;
}

static char *call_ticket(char **line, const char *verb, const char *ticket)
{
	char request[128];
	*line = NULL;
	if (!ticket_ok(ticket))
		return NULL;
	snprintf(request, sizeof request, "%s %s\n", verb, ticket);
	return call(line, request);
}

static struct sf_result *new_result(void)
{
	struct sf_result *res = calloc(1, sizeof *res);
	if (!res)
		fail("internal: out of memory");
	return res;
}

static struct sf_result *bad_answer(struct sf_result *res)
{
	fail("internal: the agent's answer makes no sense");
	FREE_SF_RES(res);
	return NULL;
}

struct sf_result *REQUEST_CLONE_TICKET(int nclones, int procs, int min, int block)
{
	char request[128], *line, ticket[SF_TICKET_SIZE + 1];
	int allowed;
	struct sf_result *res = NULL;
	snprintf(request, sizeof request, "request_clone_ticket %d %d %d %d\n", nclones, procs != 0, min, block != 0);
	char *words = call(&line, request);
	if (words && (res = new_result())) {
		if (sscanf(words, "%d %36s", &allowed, ticket) == 2) {
			res->rc.allowed_clones = allowed;
			if (allowed > 0)
				strcpy(res->ticket, ticket);
		} else {
			res = bad_answer(res);
		}
	}
	free(line);
	return res;
}

struct sf_result *REQUEST_VM_TICKET(int nclones) { return REQUEST_CLONE_TICKET(nclones, 0, -1, 1); }
struct sf_result *REQUEST_PROC_TICKET(int nclones) { return REQUEST_CLONE_TICKET(nclones, 1, -1, 1); }

static bool add_ticket(struct sf_ticket_list ***tail, const char *word)
{
	struct sf_ticket_list *t;
	if (!ticket_ok(word) || !(t = calloc(1, sizeof *t)))
		return false;
	strcpy(t->ticket, word);
	**tail = t;
	*tail = &t->next;
	return true;
}

struct sf_result *LIST_TICKETS(void)
{
	char *line, *save;
	struct sf_result *res = NULL;
	char *words = call(&line, "list_tickets\n");
	if (words && (res = new_result())) {
		struct sf_ticket_list **unused = &res->unused_tickets, **outstanding = &res->outstanding_tickets, ***tail = NULL;
		for (char *w = strtok_r(words, " ", &save); res && w; w = strtok_r(NULL, " ", &save)) {
			if (!strcmp(w, "unused"))
				tail = &unused;
			else if (!strcmp(w, "outstanding"))
				tail = &outstanding;
			else if (!tail || !add_ticket(tail, w))
				res = bad_answer(res);
		}
	}
	free(line);
	return res;
}

struct sf_result *READ_TICKET_INFO(char *ticket)
{
	char *line, *save;
	struct sf_result *res = NULL;
	char *words = call_ticket(&line, "read_ticket_info", ticket);
	if (words && (res = new_result())) {
		struct sf_clone_info **tail = &res->clone_list;
		char *w = strtok_r(words, " ", &save);
		if (!w || !ticket_ok(w))
			res = bad_answer(res);
		else
			strcpy(res->ticket, w);
		while (res && (w = strtok_r(NULL, " ", &save))) {
			struct sf_clone_info *info = calloc(1, sizeof *info);
			if (info) {
				*tail = info;
				tail = &info->next;
			}
			if (!info || sscanf(w, "%d:%d", &info->vmid, &info->processors) != 2)
				res = bad_answer(res);
		}
	}
	free(line);
	return res;
}

void DISPOSE_TICKET(char *ticket)
{
	char *line;
	call_ticket(&line, "dispose_ticket", ticket);
	free(line);
}

struct sf_result *CLONE_MASTER(char *ticket)
{
	char *line;
	struct sf_result *res = NULL;
	char *words = call_ticket(&line, "clone_master", ticket);
	if (words && (res = new_result())) {
		strcpy(res->ticket, ticket);
		if (sscanf(words, "%d %d", &res->rc.number_clones, &res->vmid) != 2)
			res = bad_answer(res);
	}
	free(line);
	return res;
}

static int simple(const char *verb, const char *ticket)
{
	char *line;
	int rc = call_ticket(&line, verb, ticket) ? 0 : -1;
	free(line);
	return rc;
}

int MERGE_MASTER(char *ticket) { return simple("merge_master", ticket && *ticket ? ticket : "*"); }
void MERGE_ALL(void) { MERGE_MASTER(NULL); }
int IC_KILL(char *ticket) { return simple("ic_kill", ticket && *ticket ? ticket : "*"); }
void IC_JOIN(char *ticket) { simple("ic_join", ticket); }

static int last_call(const char *request)
{
	char *line;
	int rc = call(&line, request) ? 0 : -1;
	free(line);
	return rc;
}

int IC_EXIT(void) { return last_call("ic_exit\n"); }
int SHUTDOWN_CLUSTER(void) { return last_call("shutdown_cluster\n"); }

void FREE_SF_RES(struct sf_result *res)
{
	if (!res)
		return;
	for (struct sf_clone_info *i = res->clone_list, *next; i; i = next) {
		next = i->next;
		free(i);
	}
	struct sf_ticket_list *lists[] = {res->unused_tickets, res->outstanding_tickets};
	for (int k = 0; k < 2; k++)
		for (struct sf_ticket_list *t = lists[k], *next; t; t = next) {
			next = t->next;
			free(t);
		}
	free(res);
}
