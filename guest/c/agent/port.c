/*
 * The link to sfld.
 *
 *   ABSENT --open--> DOWN --host connected--> UP --host gone--> DOWN
 *
 * A virtio port whose host side is not connected answers POLLHUP to every poll and 0 to every read; the agent then looks again every
 * RETRY_MS. Whenever the link comes up it starts with an empty output queue and HELLO: the host side is a new reader that must see a frame
 * boundary first. A unix socket (tests) is ABSENT when the host is gone.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define RETRY_MS 20
#define PORT_NAME "snowflock"
#define PORT_LINK "/dev/virtio-ports/" PORT_NAME
/* Above this, exec output waits in its pipes; what else may be queued is bounded by clients and sessions. */
#define OUTPUT_SOFT_BYTES (128u * 1024)
#define OUTPUT_HARD_BYTES (2u * 1024 * 1024)

static int fd = -1;
static bool is_socket;
static bool up, was_up;
static struct bytes input, output;
static int place;

static bool find_port(char *path, size_t size)
{
	if (options.port) {
		snprintf(path, size, "%s", options.port);
		return true;
	}
	if (access(PORT_LINK, F_OK) == 0) {
		snprintf(path, size, "%s", PORT_LINK);
		return true;
	}
	DIR *dir = opendir("/sys/class/virtio-ports");
	if (!dir)
		return false;
	bool found = false;
	for (struct dirent *e; !found && (e = readdir(dir));) {
		char name_path[320], name[64] = "";
		if (e->d_name[0] == '.')
			continue;
		snprintf(name_path, sizeof name_path, "/sys/class/virtio-ports/%s/name", e->d_name);
		int name_fd = open(name_path, O_RDONLY | O_CLOEXEC);
		if (name_fd < 0)
			continue;
		ssize_t n = read(name_fd, name, sizeof name - 1);
		close(name_fd);
		if (n > 0 && !strcmp(name, PORT_NAME "\n")) {
			snprintf(path, size, "/dev/%.60s", e->d_name);
			found = access(path, F_OK) == 0;
		}
	}
	closedir(dir);
	if (found) {
		/* What udev would have done; a convenience only. */
		mkdir("/dev/virtio-ports", 0755);
		if (symlink(path, PORT_LINK) < 0 && errno != EEXIST)
			say("%s: %s", PORT_LINK, strerror(errno));
	}
	return found;
}

static void open_port(void)
{
	char path[128];
	struct stat st;
	if (!find_port(path, sizeof path))
		return;
	is_socket = stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
	if (is_socket) {
		struct sockaddr_un addr = {.sun_family = AF_UNIX};
		memccpy(addr.sun_path, path, 0, sizeof addr.sun_path - 1);
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
			close(fd);
			fd = -1;
		}
		if (fd >= 0)
			fcntl(fd, F_SETFL, O_NONBLOCK);
	} else {
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
}

static void link_lost(void)
{
	up = false;
	clients_link_lost();
	if (is_socket && fd >= 0) {
		close(fd);
		fd = -1;
	}
}

/* Nothing of the old conversation holds any more. */
static void forget_conversation(void)
{
	bytes_drop(&input, input.len);
	bytes_drop(&output, output.len);
	clients_link_new();
	exec_orphan();
}

static void link_up(void)
{
	char hello[64];
	if (was_up)
		forget_conversation();
	up = was_up = true;
	int n = snprintf(hello, sizeof hello, "version=1 vcpus=%u", online_cpus());
	port_send(FRAME_HELLO, 0, hello, (size_t)n, NULL, 0);
	port_flush();
}

/* The peer spoke nonsense: drop what was read, in the kernel too, and begin again. */
static void link_reset(void)
{
	say("the host sent a broken frame: starting over");
	close(fd);
	fd = -1;
	up = false;
	clients_link_lost();
	forget_conversation();
}

static void look_for_host(void)
{
	if (fd < 0)
		open_port();
	if (fd < 0)
		return;
	struct pollfd p = {.fd = fd, .events = POLLIN};
	if (poll(&p, 1, 0) >= 0 && !(p.revents & POLLHUP))
		link_up();
	else if (is_socket)
		link_lost();
}

void port_prepare(struct poll_set *set)
{
	if (!up)
		look_for_host();
	place = -1;
	if (up)
		place = poll_add(set, fd, (short)(POLLIN | (output.len ? POLLOUT : 0)));
	else
		poll_timeout(set, RETRY_MS);
}

bool port_up(void) { return up; }
bool port_busy(void) { return output.len > OUTPUT_SOFT_BYTES; }

void port_send(uint8_t type, uint32_t id, const void *a, size_t alen, const void *b, size_t blen)
{
	if (!up)
		return;
	if (output.len > OUTPUT_HARD_BYTES || !frame_add(&output, type, id, a, alen, b, blen))
		die("the host does not read: %zu bytes are waiting", output.len);
}

void port_flush(void)
{
	while (up && output.len > 0) {
		ssize_t n = write(fd, bytes_head(&output), output.len);
		if (n > 0)
			bytes_drop(&output, (size_t)n);
		else if (n < 0 && errno == EINTR)
			continue;
		else if (n < 0 && errno == EAGAIN)
			return;
		else
			link_lost();
	}
}

bool port_drain(int64_t deadline_ms)
{
	for (;;) {
		port_flush();
		int64_t left = deadline_ms - now_ms();
		if (!up || left <= 0)
			return false;
		if (output.len == 0)
			return true;
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		poll(&p, 1, left > 50 ? 50 : (int)left);
	}
}

/* Reads what there is, at most one buffer; false at the end of the link. */
static bool read_some(void)
{
	static uint8_t chunk[32 * 1024];
	ssize_t n = read(fd, chunk, sizeof chunk);
	if (n > 0) {
		if (!bytes_add(&input, chunk, (size_t)n))
			die("out of memory");
		return true;
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

static void dispatch(const struct frame *f)
{
	switch (f->type) {
	case FRAME_REPLY:
		clients_reply(f->id, (const char *)f->payload, f->len);
		break;
	case FRAME_REPLY_DATA:
		clients_data(f);
		break;
	case FRAME_CALL_CREDIT:
		clients_credit(f);
		break;
	case FRAME_IDENTITY:
		identity_apply(f->id, f->payload, f->len, NULL);
		clients_ask_again();
		break;
	case FRAME_EXEC_START:
	case FRAME_EXEC_IN:
	case FRAME_EXEC_SIGNAL:
	case FRAME_EXEC_CREDIT:
		exec_frame(f);
		break;
	default:
		say("frame type %u is not for a guest: ignored", f->type);
	}
}

static void handle_input(void)
{
	struct frame f;
	size_t size;
	int got;
	while (up && (got = frame_peek(&input, 0, &f, &size)) != 0) {
		if (got < 0) {
			link_reset();
			return;
		}
		if (f.type == FRAME_HOLD) {
			uint32_t id = f.id;
			bytes_drop(&input, size);
			hold(id);
			continue;
		}
		dispatch(&f);
		if (input.len >= size) /* unless the conversation was forgotten meanwhile */
			bytes_drop(&input, size);
	}
}

void port_run(const struct poll_set *set)
{
	short events = poll_events(set, place);
	if (up && (events & POLLIN)) {
		if (!read_some())
			link_lost();
		handle_input();
	} else if (up && (events & (POLLHUP | POLLERR))) {
		link_lost();
	}
	port_flush();
}

bool port_find_identity(uint32_t fork_id, struct frame *f)
{
	size_t offset = 0, size;
	if (fd < 0)
		return false;
	/* Errors and a momentary end (a clone's port whose host side is still being connected) are waited out; the caller has a deadline. */
	read_some();
	while (frame_peek(&input, offset, f, &size) > 0) {
		if (f->id == fork_id && f->type == FRAME_IDENTITY) {
			static uint8_t found[FRAME_PAYLOAD_MAX];
			memcpy(found, f->payload, f->len);
			f->payload = found;
			uint8_t *p = bytes_head(&input) + offset;
			memmove(p, p + size, input.len - offset - size);
			input.len -= size;
			return true;
		}
		if (f->id == fork_id && f->type == FRAME_REPLY) {
			f->len = 0; /* the fork failed: left queued for the ordinary way */
			return true;
		}
		offset += size;
	}
	return false;
}

void port_forget_input(void) { bytes_drop(&input, input.len); }
