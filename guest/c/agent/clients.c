/*
 * Connections on the agent socket. Each may wait for one call at a time; further lines stay in its input until the reply is out.
 * A connection that ends while it waits cancels its call. A call lasts until the last byte of its reply has come from the host; some last
 * longer than the link that they were made on (again.h).
 */
#define _GNU_SOURCE
#include "agent.h"
#include "again.h"
#include "transfer.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS_MAX 64
#define LINE_MAX_BYTES 4096u
/* A reader slower than this many bytes of replies is cut off. */
#define REPLIES_MAX_BYTES (2u * FRAME_PAYLOAD_MAX + TRANSFER_WINDOW_BYTES)
#define READ_BYTES (64u * 1024)

enum call_kind { CALL_PLAIN, CALL_SHUTDOWN };

struct client {
	int fd; /* -1: free */
	struct bytes in, out;
	uint32_t call; /* 0: none */
	enum call_kind kind;
	bool answered; /* the call's reply has come; bytes of it may be missing */
	struct transfer transfer;
	bool same_seed;
	struct again again;
	bool ended; /* no more lines will come */
	int place;
};

static struct client clients[CLIENTS_MAX];
static int listener = -1, listener_place;
static uint32_t last_call;

void clients_open(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	char dir[sizeof addr.sun_path];
	if (strlen(options.socket) >= sizeof addr.sun_path)
		die("%s: the path of a socket has at most %zu characters", options.socket, sizeof addr.sun_path - 1);
	snprintf(addr.sun_path, sizeof addr.sun_path, "%s", options.socket);
	snprintf(dir, sizeof dir, "%s", options.socket);
	char *slash = strrchr(dir, '/');
	if (slash && slash != dir) {
		*slash = 0;
		mkdir(dir, 0755);
	}
	for (int i = 0; i < CLIENTS_MAX; i++)
		clients[i].fd = -1;
	unlink(addr.sun_path);
	listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (listener < 0 || bind(listener, (struct sockaddr *)&addr, sizeof addr) < 0 || listen(listener, 64) < 0)
		die("%s: %s", addr.sun_path, strerror(errno));
	if (chmod(addr.sun_path, 0660) < 0)
		say("%s: %s", addr.sun_path, strerror(errno));
}

static void client_close(struct client *c)
{
	if (c->call)
		port_send(FRAME_CANCEL, c->call, NULL, 0, NULL, 0);
	close(c->fd);
	bytes_free(&c->in);
	bytes_free(&c->out);
	memset(c, 0, sizeof *c);
	c->fd = -1;
}

static void client_flush(struct client *c)
{
	while (c->out.len > 0) {
		ssize_t n = send(c->fd, bytes_head(&c->out), c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			transfer_sent(&c->transfer, c->call, (size_t)n, c->out.len);
			bytes_drop(&c->out, (size_t)n);
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else if (n < 0 && errno == EAGAIN) {
			return;
		} else {
			client_close(c);
			return;
		}
	}
}

/* One line out; control characters of a reply would break the line, so they become spaces. */
static void client_say(struct client *c, const char *text, size_t len)
{
	size_t old = c->out.len;
	if (old + len > REPLIES_MAX_BYTES || !bytes_add(&c->out, text, len) || !bytes_add(&c->out, "\n", 1)) {
		client_close(c);
		return;
	}
	uint8_t *p = bytes_head(&c->out) + old;
	for (size_t i = 0; i < len; i++)
		if (p[i] < 0x20)
			p[i] = ' ';
	client_flush(c);
}

static void say_text(struct client *c, const char *text) { client_say(c, text, strlen(text)); }

static bool is_verb(const char *line, size_t len, const char *verb)
{
	size_t n = strlen(verb);
	return len >= n && !memcmp(line, verb, n) && (len == n || line[n] == ' ');
}

static uint32_t next_call(void)
{
	for (;;) {
		bool taken = ++last_call == 0;
		for (int i = 0; i < CLIENTS_MAX && !taken; i++)
			taken = clients[i].fd >= 0 && clients[i].call == last_call;
		if (!taken)
			return last_call;
	}
}

static void interrupt(struct client *c);

static void send_again(struct client *c)
{
	char line[LINE_MAX_BYTES];
	size_t len = again_line(&c->again, line, sizeof line);
	c->again.lost_ms = 0;
	port_send(FRAME_CALL, c->call, line, len, NULL, 0);
}

static void handle_line(struct client *c, const char *line, size_t len)
{
	transfer_begin(&c->transfer, transfer_announced(line, len), true);
	for (size_t i = 0; i < len; i++)
		if (line[i] < 0x20 || line[i] > 0x7e) {
			say_text(c, "err bad-request a call is one line of printable ASCII");
			return;
		}
	if (len == 0) {
		say_text(c, "err bad-request empty call");
	} else if (is_verb(line, len, "whoami")) {
		long clusterid, vmid;
		char text[64] = "err unavailable this VM has not been told its identity yet";
		if (identity_known(&clusterid, &vmid))
			snprintf(text, sizeof text, "ok %ld %ld", clusterid, vmid);
		say_text(c, text);
	} else if (settle_busy() && is_verb(line, len, "clone_master")) {
		say_text(c, "err unavailable this clone runs its hooks; a hook cannot fork it");
	} else if (!port_up()) {
		say_text(c, "err unavailable the daemon of this host is not connected");
	} else {
		c->call = next_call();
		c->same_seed = is_verb(line, len, "clone_master") && len > 5 && !memcmp(line + len - 5, " same", 5);
		c->kind = is_verb(line, len, "shutdown_cluster") ? CALL_SHUTDOWN : CALL_PLAIN;
		c->answered = false;
		c->transfer.up_unwanted = false;
		if (again_keep(&c->again, line, len))
			send_again(c);
		else
			port_send(FRAME_CALL, c->call, line, len, NULL, 0);
		transfer_up(&c->transfer, c->call, &c->in);
		port_flush();
	}
}

/* Takes lines as long as none waits for an answer, and the bytes that follow them. */
static void handle_lines(struct client *c)
{
	transfer_up(&c->transfer, c->call, &c->in);
	while (c->fd >= 0 && !c->call && c->transfer.up_left == 0 && c->in.len > 0) {
		char line[LINE_MAX_BYTES];
		const uint8_t *head = bytes_head(&c->in);
		const uint8_t *end = memchr(head, '\n', c->in.len);
		size_t len = end ? (size_t)(end - head) : c->in.len;
		if (len >= sizeof line) {
			say_text(c, "err bad-request the line is too long");
			if (c->fd >= 0)
				client_close(c);
			return;
		}
		if (!end)
			break;
		memcpy(line, head, len);
		bytes_drop(&c->in, len + 1);
		handle_line(c, line, len);
		if (c->fd >= 0)
			transfer_up(&c->transfer, c->call, &c->in);
	}
	if (c->fd >= 0 && c->ended && c->transfer.up_left > 0 && c->in.len == 0)
		client_close(c); /* the rest of the call's bytes will never come */
	else if (c->fd >= 0 && c->ended && !c->call && c->out.len == 0)
		client_close(c);
}

static void client_read(struct client *c)
{
	static uint8_t chunk[READ_BYTES];
	size_t most = c->transfer.up_left > 0 ? sizeof chunk : LINE_MAX_BYTES;
	ssize_t n = recv(c->fd, chunk, most, MSG_DONTWAIT);
	if (n > 0 && bytes_add(&c->in, chunk, (size_t)n)) {
		handle_lines(c);
	} else if (n == 0) {
		c->ended = true;
		handle_lines(c);
	} else if (errno != EAGAIN && errno != EINTR) {
		client_close(c);
	}
}

static void client_accept(void)
{
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].fd < 0) {
			clients[i].fd = fd;
			return;
		}
	static const char busy[] = "err unavailable too many programs are talking to the agent\n";
	send(fd, busy, sizeof busy - 1, MSG_NOSIGNAL);
	close(fd);
}

/* The host has been away for too long. */
static void give_up(struct poll_set *set)
{
	static const char text[] = "err unavailable the daemon of this host has been away for 10 minutes; ask again when it is back";
	for (int i = 0; i < CLIENTS_MAX; i++) {
		struct client *c = &clients[i];
		if (c->fd < 0 || !c->call || !c->again.lost_ms)
			continue;
		int64_t left = c->again.lost_ms + AGAIN_WAIT_MS - now_ms();
		if (left > 0)
			poll_timeout(set, (int)left);
		else if (c->answered)
			interrupt(c);
		else
			clients_reply(c->call, text, sizeof text - 1);
	}
}

void clients_prepare(struct poll_set *set)
{
	give_up(set);
	listener_place = poll_add(set, listener, POLLIN);
	for (int i = 0; i < CLIENTS_MAX; i++) {
		struct client *c = &clients[i];
		short events = 0; /* POLLHUP, the end of both directions, is always reported */
		c->place = -1;
		if (c->fd >= 0 && c->in.len > 0 && transfer_wants(&c->transfer))
			handle_lines(c); /* the port was busy before */
		if (c->fd < 0)
			continue;
		if (!c->ended && c->in.len < READ_BYTES &&
		    (c->transfer.up_left > 0 ? transfer_wants(&c->transfer) : !c->call && c->out.len == 0))
			events |= POLLIN;
		if (c->out.len > 0)
			events |= POLLOUT;
		c->place = poll_add(set, c->fd, events);
	}
}

void clients_run(const struct poll_set *set)
{
	for (int i = 0; i < CLIENTS_MAX; i++) {
		struct client *c = &clients[i];
		short events = c->fd >= 0 ? poll_events(set, c->place) : 0;
		if (events & POLLOUT)
			client_flush(c);
		if (c->fd >= 0 && (events & POLLIN))
			client_read(c);
		else if (c->fd >= 0 && (events & (POLLHUP | POLLERR)))
			client_close(c);
		else if (c->fd >= 0 && (events & POLLOUT))
			handle_lines(c);
	}
	if (poll_events(set, listener_place) & POLLIN)
		client_accept();
}

static struct client *find(uint32_t call)
{
	for (int i = 0; call != 0 && i < CLIENTS_MAX; i++)
		if (clients[i].fd >= 0 && clients[i].call == call)
			return &clients[i];
	return NULL; /* its caller has gone and the CANCEL crossed what came for it */
}

void clients_reply(uint32_t call, const char *text, size_t len)
{
	struct client *c = find(call);
	if (!c || c->answered)
		return;
	bool ok = is_verb(text, len, "ok");
	bool off = ok && c->kind == CALL_SHUTDOWN;
	c->transfer.up_unwanted = true;
	c->transfer.down_left = ok ? transfer_announced(text, len) : 0;
	c->answered = true;
	if (c->transfer.down_left == 0)
		c->call = 0;
	client_say(c, text, len);
	if (off)
		power_off();
	if (c->fd >= 0)
		handle_lines(c);
}

void clients_data(const struct frame *f)
{
	struct client *c = find(f->id);
	if (!c)
		return;
	if (!c->answered || !transfer_down(&c->transfer, f, &c->out)) {
		if (f->len > 0)
			say("call %u: the host sent bytes that were not announced or granted", f->id);
		client_close(c);
		return;
	}
	if (c->transfer.down_left == 0) {
		c->call = 0;
		c->transfer.down_queued = 0;
	}
	client_flush(c);
	if (c->fd >= 0)
		handle_lines(c);
}

void clients_credit(const struct frame *f)
{
	struct client *c = find(f->id);
	if (!c)
		return;
	transfer_credit(&c->transfer, f);
	handle_lines(c);
}

static void interrupt(struct client *c)
{
	static const char text[] = "err interrupted the call was interrupted; ask again";
	if (c->answered) {
		c->call = 0; /* in the midst of a reply's bytes an error cannot be told otherwise */
		client_close(c);
	} else {
		clients_reply(c->call, text, sizeof text - 1);
	}
}

void clients_interrupt(uint32_t except)
{
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].fd >= 0 && clients[i].call && clients[i].call != except)
			interrupt(&clients[i]);
}

void clients_link_lost(void)
{
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].fd >= 0 && clients[i].call && !clients[i].again.lost_ms)
			clients[i].again.lost_ms = now_ms();
}

void clients_link_new(void)
{
	for (int i = 0; i < CLIENTS_MAX; i++) {
		struct client *c = &clients[i];
		if (c->fd >= 0 && c->call && c->again.lost_ms && (c->answered || !c->again.line[0]))
			interrupt(c);
	}
}

void clients_ask_again(void)
{
	for (int i = 0; i < CLIENTS_MAX; i++) {
		struct client *c = &clients[i];
		if (c->fd < 0 || !c->call || !c->again.lost_ms)
			continue;
		c->call = next_call(); /* whatever the host still says of the old one is for nobody */
		send_again(c);
	}
}

bool clients_same_seed(uint32_t call)
{
	for (int i = 0; i < CLIENTS_MAX; i++)
		if (clients[i].fd >= 0 && clients[i].call == call)
			return clients[i].same_seed;
	return false;
}
