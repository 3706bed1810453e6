/*
 * Commands run for the host.
 *
 *   FREE --EXEC_START--> RUNNING --both streams ended and the process reaped, EXEC_EXIT--> FREE
 *
 * `known` is false once the host has forgotten the session (a clone, or a new link): its output is read and thrown away, so that the
 * processes never see a broken pipe.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#define SESSIONS_MAX 64
#define ARGS_MAX 4096
/* What either side may send before the other grants more. */
#define WINDOW_BYTES (256u * 1024)
#define CREDIT_MAX (1u << 30)
/* Grants are gathered to this size, so that a large stdin does not cost a frame per pipe-full. */
#define GRANT_BYTES (32u * 1024)
#define READ_BYTES (32u * 1024)

struct stream {
	int fd; /* -1: ended */
	int place;
};

struct session {
	bool used, known, reaped;
	uint32_t id;
	pid_t pid;
	int status;
	uint32_t credit; /* bytes of output the host still takes */
	struct stream out[2];
	struct stream in;
	bool in_eof;
	struct bytes in_data;
	uint32_t in_granted; /* consumed, not yet granted back */
};

static struct session sessions[SESSIONS_MAX];
static int signal_fd = -1, signal_place;

void exec_open(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (signal_fd < 0)
		die("signalfd: %s", strerror(errno));
}

static void send_out(uint32_t id, uint8_t stream, const void *data, size_t len)
{
	port_send(FRAME_EXEC_OUT, id, &stream, 1, data, len);
}

static void send_exit(uint32_t id, int status)
{
	uint8_t code[4];
	put_le32(code, (uint32_t)status);
	port_send(FRAME_EXEC_EXIT, id, code, sizeof code, NULL, 0);
}

/* A command that never started: the reason on its stderr, then its end. */
static void refuse(uint32_t id, int status, const char *reason)
{
	char text[256];
	int n = snprintf(text, sizeof text, "sfagent: %s\n", reason);
	send_out(id, 2, text, (size_t)n);
	send_out(id, 1, NULL, 0);
	send_out(id, 2, NULL, 0);
	send_exit(id, status);
}

static void close_stream(struct stream *s)
{
	if (s->fd >= 0)
		close(s->fd);
	s->fd = -1;
}

static void finish(struct session *s)
{
	if (!s->used || !s->reaped || s->out[0].fd >= 0 || s->out[1].fd >= 0)
		return;
	if (s->known)
		send_exit(s->id, WIFSIGNALED(s->status) ? 128 + WTERMSIG(s->status) : WEXITSTATUS(s->status));
	close_stream(&s->in);
	bytes_free(&s->in_data);
	memset(s, 0, sizeof *s);
}

void exec_child_defaults(void)
{
	static char *env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux", NULL};
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	if (!options.no_identity) {
		setpriority(PRIO_PROCESS, 0, 0);
		write_file("/proc/self/oom_score_adj", "0");
	}
	if (chdir("/root") < 0 && chdir("/") < 0)
		_exit(126);
	environ = env;
}

static void run_child(char **argv, const int in[2], const int out[2], const int err[2])
{
	if (dup2(in[0], 0) < 0 || dup2(out[1], 1) < 0 || dup2(err[1], 2) < 0)
		_exit(126);
	exec_child_defaults(); /* before execvp, which searches this PATH */
	execvp(argv[0], argv);
	int error = errno;
	dprintf(2, "sfagent: cannot run '%s': %s\n", argv[0], strerror(error));
	_exit(error == ENOENT || error == ENOTDIR ? 127 : 126);
}

static void close_pair(int pair[2])
{
	for (int i = 0; i < 2; i++)
		if (pair[i] >= 0)
			close(pair[i]);
}

static bool spawn(struct session *s, char **argv)
{
	int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1};
	bool ok = pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0;
	s->pid = ok ? freezer_fork_rest() : -1;
	if (s->pid == 0)
		run_child(argv, in, out, err);
	if (s->pid < 0) {
		close_pair(in);
		close_pair(out);
		close_pair(err);
		return false;
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	s->in.fd = in[1];
	s->out[0].fd = out[0];
	s->out[1].fd = err[0];
	fcntl(in[1], F_SETFL, O_NONBLOCK);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	return true;
}

static struct session *find(uint32_t id)
{
	for (int i = 0; i < SESSIONS_MAX; i++)
		if (sessions[i].used && sessions[i].known && sessions[i].id == id)
			return &sessions[i];
	return NULL;
}

static void start(const struct frame *f)
{
	static char *argv[ARGS_MAX + 1];
	struct session *s = NULL;
	int argc = 0;
	if (find(f->id)) {
		say("exec session %u exists already: ignored", f->id);
		return;
	}
	if (f->len == 0 || f->payload[f->len - 1] != 0 || f->payload[0] == 0) {
		refuse(f->id, 127, "no command was given");
		return;
	}
	for (uint32_t at = 0; at < f->len; at += (uint32_t)strlen((const char *)f->payload + at) + 1) {
		if (argc == ARGS_MAX) {
			refuse(f->id, 126, "the command has too many arguments");
			return;
		}
		argv[argc++] = (char *)(uintptr_t)(f->payload + at);
	}
	argv[argc] = NULL;
	for (int i = 0; i < SESSIONS_MAX && !s; i++)
		if (!sessions[i].used)
			s = &sessions[i];
	if (!s) {
		refuse(f->id, 126, "too many commands are running");
		return;
	}
	*s = (struct session){.used = true, .known = true, .id = f->id, .credit = WINDOW_BYTES};
	if (!spawn(s, argv)) {
		char reason[128];
		snprintf(reason, sizeof reason, "cannot start a process: %s", strerror(errno));
		memset(s, 0, sizeof *s);
		refuse(f->id, 126, reason);
	}
}

/*
 * To the whole group, which is still this command's: it is not reaped, or something of it holds a stream open. A child that has not come to
 * setsid() yet has no group; then it is alone and gets the signal itself.
 */
static void send_signal(const struct session *s, int number)
{
	if (kill(-s->pid, number) < 0 && errno == ESRCH && !s->reaped)
		kill(s->pid, number);
}

static void grant(struct session *s, uint32_t consumed)
{
	uint8_t more[4];
	s->in_granted += consumed;
	if (!s->known || s->in_granted < GRANT_BYTES)
		return;
	put_le32(more, s->in_granted);
	s->in_granted = 0;
	port_send(FRAME_EXEC_CREDIT, s->id, more, sizeof more, NULL, 0);
}

static void write_stdin(struct session *s)
{
	while (s->in.fd >= 0 && s->in_data.len > 0) {
		ssize_t n = write(s->in.fd, bytes_head(&s->in_data), s->in_data.len);
		if (n > 0) {
			bytes_drop(&s->in_data, (size_t)n);
			grant(s, (uint32_t)n);
		} else if (n < 0 && errno == EINTR) {
			continue;
		} else if (n < 0 && errno == EAGAIN) {
			return;
		} else {
			close_stream(&s->in); /* the command closed its stdin */
		}
	}
	if (s->in.fd < 0 && s->in_data.len > 0) {
		grant(s, (uint32_t)s->in_data.len);
		bytes_drop(&s->in_data, s->in_data.len);
	}
	if (s->in_eof && s->in_data.len == 0)
		close_stream(&s->in);
}

static void take_stdin(struct session *s, const struct frame *f)
{
	if (f->len == 0) {
		s->in_eof = true;
	} else if (s->in_eof) {
		return;
	} else if (s->in_data.len + f->len > WINDOW_BYTES || !bytes_add(&s->in_data, f->payload, f->len)) {
		say("exec session %u: the host sent more stdin than was granted: killed", s->id);
		send_signal(s, SIGKILL);
		return;
	}
	write_stdin(s);
}

void exec_frame(const struct frame *f)
{
	if (f->type == FRAME_EXEC_START) {
		start(f);
		return;
	}
	struct session *s = find(f->id);
	if (!s)
		return; /* it ended while the frame was under way */
	if (f->type == FRAME_EXEC_IN) {
		take_stdin(s, f);
	} else if (f->type == FRAME_EXEC_SIGNAL && f->len == 1 && f->payload[0] >= 1 && f->payload[0] <= 64) {
		send_signal(s, f->payload[0]);
	} else if (f->type == FRAME_EXEC_CREDIT && f->len == 4) {
		uint64_t credit = (uint64_t)s->credit + get_le32(f->payload);
		s->credit = credit > CREDIT_MAX ? CREDIT_MAX : (uint32_t)credit;
	}
}

void exec_orphan(void)
{
	for (int i = 0; i < SESSIONS_MAX; i++)
		if (sessions[i].used) /* to write to an untouched page is a page fault, which a clone pays dearly for */
			sessions[i].known = false;
}

static bool may_read(const struct session *s) { return !s->known || (s->credit > 0 && !port_busy()); }

static void read_stream(struct session *s, int which)
{
	static uint8_t chunk[READ_BYTES];
	size_t want = s->known && s->credit < sizeof chunk ? s->credit : sizeof chunk;
	ssize_t n = read(s->out[which].fd, chunk, want);
	if (n > 0) {
		if (!s->known)
			return;
		s->credit -= (uint32_t)n;
		send_out(s->id, (uint8_t)(which + 1), chunk, (size_t)n);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close_stream(&s->out[which]);
		if (s->known)
			send_out(s->id, (uint8_t)(which + 1), NULL, 0);
		finish(s);
	}
}

static void reap(void)
{
	struct signalfd_siginfo info[8];
	pid_t pid;
	int status;
	while (read(signal_fd, info, sizeof info) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		settle_child(pid, status);
		for (int i = 0; i < SESSIONS_MAX; i++)
			if (sessions[i].used && !sessions[i].reaped && sessions[i].pid == pid) {
				sessions[i].reaped = true;
				sessions[i].status = status;
				finish(&sessions[i]);
				break;
			}
	}
}

void exec_prepare(struct poll_set *set)
{
	signal_place = poll_add(set, signal_fd, POLLIN);
	for (int i = 0; i < SESSIONS_MAX; i++) {
		struct session *s = &sessions[i];
		if (!s->used)
			continue;
		s->in.place = s->in.fd >= 0 && s->in_data.len > 0 ? poll_add(set, s->in.fd, POLLOUT) : -1;
		for (int k = 0; k < 2; k++)
			s->out[k].place = s->out[k].fd >= 0 && may_read(s) ? poll_add(set, s->out[k].fd, POLLIN) : -1;
	}
}

void exec_run(const struct poll_set *set)
{
	for (int i = 0; i < SESSIONS_MAX; i++) {
		struct session *s = &sessions[i];
		if (s->used && poll_events(set, s->in.place))
			write_stdin(s);
		for (int k = 0; k < 2 && s->used; k++)
			if (s->out[k].fd >= 0 && poll_events(set, s->out[k].place) && may_read(s))
				read_stream(s, k);
	}
	if (poll_events(set, signal_place))
		reap();
}
