/*
 * What a clone does between its identity and the answer to the program that forked: processors that are not its own go offline, and the
 * executables of /etc/snowflock/clone.d (hooks) run, one after the other. Everybody else is stopped meanwhile (freezer.c), from before
 * the CPUs are let go.
 *
 *   IDLE --settle_begin: something to do, the rest frozen--> BEGUN --settle_run--> HOOK --all ended well--> IDLE, the caller answered
 *                                                                                   \--one did not--> FAILED
 *
 * In FAILED the rest stays frozen: no program ever runs in a clone that is not what it should be. The host, told the reason, ends the VM.
 * Where there is nothing to do a clone pays nothing: the hooks are listed in the parent, before the fork.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "identity.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define HOOKS_MAX 64
#define NAME_BYTES 128
#define HOOK_MS 10000
/* All of them together; the host waits a little longer (SETTLE_TIMEOUT_MS of sfld). */
#define HOOKS_MS 20000
/* A failed clone that the host does not end powers itself off. */
#define FAILED_MS 10000
/* The end of what a hook prints, for the reason. */
#define TAIL_BYTES 256

static enum { IDLE, BEGUN, HOOK, FAILED } state;
static char names[HOOKS_MAX][NAME_BYTES];
static int hooks; /* HOOKS_MAX + 1: too many */
static int current;
static pid_t pid;
static int output = -1, output_place;
static char tail[TAIL_BYTES + 1];
static size_t tail_len;
static int64_t hook_deadline, last_deadline;
static struct identity clone_identity;
static uint32_t fork_id;

bool settle_busy(void) { return state != IDLE; }

static bool is_hook(int dir, const char *name)
{
	struct stat st;
	size_t len = strlen(name);
	return name[0] != '.' && name[len - 1] != '~' && len < NAME_BYTES && fstatat(dir, name, &st, 0) == 0 && S_ISREG(st.st_mode) &&
	       (st.st_mode & 0111);
}

static int by_name(const void *a, const void *b) { return strcmp(a, b); }

void settle_scan(void)
{
	DIR *dir = opendir(options.hooks);
	hooks = 0;
	if (!dir)
		return;
	for (struct dirent *e; hooks <= HOOKS_MAX && (e = readdir(dir));)
		if (is_hook(dirfd(dir), e->d_name) && ++hooks <= HOOKS_MAX)
			strcpy(names[hooks - 1], e->d_name);
	closedir(dir);
	if (hooks > 0 && hooks <= HOOKS_MAX)
		qsort(names, (size_t)hooks, NAME_BYTES, by_name);
}

bool settle_begin(const struct identity *id)
{
	if (hooks == 0 && !cpus_differ(id->vcpus))
		return false;
	clone_identity = *id;
	explicit_bzero(clone_identity.entropy, sizeof clone_identity.entropy);
	freezer_set(true);
	state = BEGUN;
	return true;
}

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...)
{
	char reason[2 * TAIL_BYTES + NAME_BYTES];
	va_list args;
	va_start(args, format);
	vsnprintf(reason, sizeof reason, format, args);
	va_end(args);
	say("%s", reason);
	port_send(FRAME_SETTLED, fork_id, reason, strlen(reason), NULL, 0);
	port_flush();
	state = FAILED;
	last_deadline = now_ms() + FAILED_MS;
}

static void settled(void)
{
	if (hooks > 0)
		freezer_release_hooks();
	freezer_set(false);
	state = IDLE;
	port_send(FRAME_SETTLED, fork_id, NULL, 0, NULL, 0);
	port_flush();
	identity_answer(fork_id);
}

static void put_number(const char *name, long value)
{
	char text[24];
	snprintf(text, sizeof text, "%ld", value);
	setenv(name, text, 1);
}

/* Runs in the child. */
static void run_child(const char *name, int out)
{
	char path[512], ip[INET_ADDRSTRLEN] = "";
	const struct identity *id = &clone_identity;
	int nothing = open("/dev/null", O_RDONLY);
	if (nothing < 0 || dup2(nothing, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(126);
	exec_child_defaults();
	inet_ntop(AF_INET, &id->ip, ip, sizeof ip);
	put_number("SNOWFLOCK_CLUSTERID", id->clusterid);
	put_number("SNOWFLOCK_VMID", id->vmid);
	put_number("SNOWFLOCK_NCLONES", id->nclones);
	setenv("SNOWFLOCK_TICKET", id->ticket, 1);
	setenv("SNOWFLOCK_HOSTNAME", id->hostname, 1);
	setenv("SNOWFLOCK_IP", ip, 1);
	setenv("SNOWFLOCK_SEED", clients_same_seed(fork_id) ? "same" : "fresh", 1);
	snprintf(path, sizeof path, "%s/%s", options.hooks, name);
	execl(path, path, (char *)NULL);
	dprintf(2, "%s\n", strerror(errno));
	_exit(126);
}

static void start_hook(void)
{
	int out[2];
	if (current == hooks) {
		settled();
		return;
	}
	pid = pipe2(out, O_CLOEXEC) == 0 ? fork() : -1;
	if (pid < 0) {
		fail("hook %s: cannot start a process: %s", names[current], strerror(errno));
		return;
	}
	if (pid == 0)
		run_child(names[current], out[1]);
	close(out[1]);
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	output = out[0];
	tail_len = 0;
	hook_deadline = now_ms() + HOOK_MS;
}

void settle_run(uint32_t id)
{
	if (state != BEGUN)
		return;
	fork_id = id;
	cpus_set(clone_identity.vcpus);
	state = HOOK;
	current = 0;
	last_deadline = now_ms() + HOOKS_MS;
	if (hooks > HOOKS_MAX)
		fail("%s holds more than %d hooks", options.hooks, HOOKS_MAX);
	else
		start_hook();
}

static void keep_tail(const char *text, size_t len)
{
	size_t keep = len < TAIL_BYTES ? len : TAIL_BYTES;
	size_t old = tail_len + keep > TAIL_BYTES ? TAIL_BYTES - keep : tail_len;
	memmove(tail, tail + tail_len - old, old);
	memcpy(tail + old, text + len - keep, keep);
	tail_len = old + keep;
}

/* What there is; all of it goes to the agent's log as well. */
static void read_output(void)
{
	char chunk[512];
	ssize_t n;
	while ((n = read(output, chunk, sizeof chunk)) > 0) {
		keep_tail(chunk, (size_t)n);
		fwrite(chunk, 1, (size_t)n, stderr);
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	close(output);
	output = -1;
}

/* The last line that the hook printed, fit for a reason. */
static const char *last_line(void)
{
	while (tail_len > 0 && (unsigned char)tail[tail_len - 1] <= ' ')
		tail_len--;
	tail[tail_len] = 0;
	char *newline = strrchr(tail, '\n'), *line = newline ? newline + 1 : tail;
	for (char *c = line; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = ' ';
	return line;
}

static void stop_output(void)
{
	if (output >= 0)
		read_output();
	if (output >= 0)
		close(output); /* something that the hook left behind has it still */
	output = -1;
}

void settle_child(pid_t ended, int status)
{
	if (state != HOOK || ended != pid)
		return;
	stop_output();
	const char *line = last_line(), *colon = *line ? ": " : "";
	if (WIFSIGNALED(status))
		fail("hook %s was ended by signal %d%s%s", names[current], WTERMSIG(status), colon, line);
	else if (WEXITSTATUS(status) != 0)
		fail("hook %s failed with status %d%s%s", names[current], WEXITSTATUS(status), colon, line);
	else {
		current++;
		start_hook();
	}
}

static int64_t deadline(void) { return state == HOOK && hook_deadline < last_deadline ? hook_deadline : last_deadline; }

void settle_prepare(struct poll_set *set)
{
	if (state == IDLE)
		return;
	int64_t left = deadline() - now_ms();
	poll_timeout(set, left < 0 ? 0 : (int)left);
	output_place = output >= 0 ? poll_add(set, output, POLLIN) : -1;
}

void settle_poll(const struct poll_set *set)
{
	if (state == HOOK && output >= 0 && poll_events(set, output_place))
		read_output();
	if (state == IDLE || now_ms() < deadline())
		return;
	if (state == FAILED) {
		say("the host has not ended this clone: it powers itself off");
		power_off();
	}
	kill(-pid, SIGKILL);
	stop_output();
	if (now_ms() < last_deadline)
		fail("hook %s did not end within %d s", names[current], HOOK_MS / 1000);
	else
		fail("hook %s had not ended when all of them had taken %d s", names[current], HOOKS_MS / 1000);
}
