/* libsf: each call is one connection to the agent socket, one line out and one line back (docs/guest-channel.md). */
#define _GNU_SOURCE
#include "sf.h"
#include "call.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/snowflock/agent.sock"
#define REPLY_MAX (65536 + 2)

static __thread char last_error[512];

const char *sf_last_error(void) { return last_error; }

void sf_fail(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(last_error, sizeof last_error, format, args);
	va_end(args);
}

int sf_connect(void)
{
	last_error[0] = 0;
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	const char *path = getenv("SNOWFLOCK_AGENT_SOCKET");
	if (!path || !*path)
		path = DEFAULT_SOCKET;
	if (strlen(path) >= sizeof addr.sun_path) {
		sf_fail("bad-request: the path of the agent socket is too long");
		return -1;
	}
	strcpy(addr.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) == 0)
		return fd;
	sf_fail("unavailable: cannot reach the SnowFlock agent at %s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -1;
}

bool sf_send_all(int fd, const void *data, size_t len)
{
	const char *text = data;
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

char *sf_parse_reply(char *line)
{
	if (!strcmp(line, "ok"))
		return line + 2;
	if (!strncmp(line, "ok ", 3))
		return line + 3;
	if (!strncmp(line, "err ", 4)) {
		char *code = line + 4, *space = strchr(code, ' ');
		if (space)
			*space = 0;
		sf_fail("%s: %s", code, space ? space + 1 : "the call failed");
	} else {
		sf_fail("internal: the agent's answer makes no sense");
	}
	return NULL;
}

/* Makes a call; the words of its answer, or NULL. Free *line in both cases. */
static char *call(char **line, const char *request)
{
	*line = NULL;
	int fd = sf_connect();
	if (fd < 0)
		return NULL;
	if (sf_send_all(fd, request, strlen(request)))
		*line = read_line(fd);
	close(fd);
	if (*line)
		return sf_parse_reply(*line);
	sf_fail("unavailable: the SnowFlock agent closed the connection");
	return NULL;
}

bool sf_ticket_ok(const char *ticket)
{
	size_t n = ticket ? strlen(ticket) : 0;
	if (n == 0 || n > SF_TICKET_SIZE) {
		sf_fail("bad-request: not a ticket");
		return false;
	}
	for (size_t i = 0; i < n; i++)
		if (ticket[i] <= ' ' || ticket[i] > '~') {
			sf_fail("bad-request: not a ticket");
			return false;
		}
	return true;
}

static char *call_ticket(char **line, const char *verb, const char *ticket)
{
	char request[128];
	*line = NULL;
	if (!sf_ticket_ok(ticket))
		return NULL;
	stpcpy(stpcpy(stpcpy(stpcpy(request, verb), " "), ticket), "\n");
	return call(line, request);
}

static struct sf_result *new_result(void)
{
	struct sf_result *res = calloc(1, sizeof *res);
	if (!res)
		sf_fail("internal: out of memory");
	return res;
}

static struct sf_result *bad_answer(struct sf_result *res)
{
	sf_fail("internal: the agent's answer makes no sense");
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
	if (!sf_ticket_ok(word) || !(t = calloc(1, sizeof *t)))
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
		if (!w || !sf_ticket_ok(w))
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

/* Reads a number of up to nine digits; what follows it, or NULL. */
static const char *take_number(const char *text, int *out)
{
	int digits = 0;
	for (*out = 0; digits < 9 && text[digits] >= '0' && text[digits] <= '9'; digits++)
		*out = 10 * *out + (text[digits] - '0');
	return digits > 0 ? text + digits : NULL;
}

int sf_reseed(void)
{
	struct {
		unsigned seed;
		unsigned short seed48[3];
	} fresh;
	if (getrandom(&fresh, sizeof fresh, 0) != sizeof fresh) {
		sf_fail("internal: the kernel gives no random numbers: %s", strerror(errno));
		return -1;
	}
	srand(fresh.seed);
	srandom(fresh.seed);
	seed48(fresh.seed48);
	explicit_bzero(&fresh, sizeof fresh);
	return 0;
}

struct sf_result *sf_clone_master(const char *ticket, int seed)
{
	char request[128], *line = NULL;
	struct sf_result *res = NULL;
	if (!sf_ticket_ok(ticket))
		return NULL;
	if (seed != SF_SEED_FRESH && seed != SF_SEED_SAME) {
		sf_fail("bad-request: the seed is SF_SEED_FRESH or SF_SEED_SAME, not %d", seed);
		return NULL;
	}
	snprintf(request, sizeof request, "clone_master %s%s\n", ticket, seed == SF_SEED_SAME ? " same" : "");
	char *words = call(&line, request);
	if (words && (res = new_result())) {
		strcpy(res->ticket, ticket);
		/* Not by sscanf: a clone runs this first of all, and under emulation that would take it some ms. */
		const char *rest = take_number(words, &res->rc.number_clones);
		if (!rest || *rest != ' ' || !(rest = take_number(rest + 1, &res->vmid)) || *rest)
			res = bad_answer(res);
	}
	free(line);
	if (res && res->vmid != 0 && seed == SF_SEED_FRESH)
		sf_reseed();
	return res;
}

struct sf_result *CLONE_MASTER(char *ticket) { return sf_clone_master(ticket, SF_SEED_FRESH); }

int sf_whoami(int *clusterid, int *vmid)
{
	char *line;
	int cluster, vm, rc = -1;
	char *words = call(&line, "whoami\n");
	if (words && sscanf(words, "%d %d", &cluster, &vm) == 2) {
		if (clusterid)
			*clusterid = cluster;
		if (vmid)
			*vmid = vm;
		rc = 0;
	} else if (words) {
		bad_answer(NULL);
	}
	free(line);
	return rc;
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

int sf_reset(int vmid)
{
	char word[16];
	snprintf(word, sizeof word, "%d", vmid);
	return simple("reset_clone", word);
}

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
