/* sfagent: the in-guest end of the guest channel. Contract: docs/guest-channel.md. */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct options options = {.port = NULL, .socket = "/run/snowflock/agent.sock", .hooks = "/etc/snowflock/clone.d", .no_identity = false};

static void vsay(const char *format, va_list args)
{
	char line[512];
	vsnprintf(line, sizeof line, format, args);
	fprintf(stderr, "sfagent: %s\n", line);
}

void say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsay(format, args);
	va_end(args);
}

void die(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsay(format, args);
	va_end(args);
	exit(1);
}

int64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

void power_off(void)
{
	if (options.no_identity)
		exit(0);
	sync();
	reboot(RB_POWER_OFF);
	die("cannot power off: %s", strerror(errno));
}

int poll_add(struct poll_set *set, int fd, short events)
{
	if (set->count >= POLL_MAX)
		return -1;
	set->fds[set->count] = (struct pollfd){.fd = fd, .events = events};
	return set->count++;
}

void poll_timeout(struct poll_set *set, int timeout_ms)
{
	if (set->timeout_ms < 0 || timeout_ms < set->timeout_ms)
		set->timeout_ms = timeout_ms;
}

static const char usage[] = "usage: sfagent [--port PATH] [--socket PATH] [--hooks DIR] [--no-identity]\n"
			    "  --port PATH     virtio port or unix socket (default: the virtio port named 'snowflock')\n"
			    "  --socket PATH   where programs of this VM connect (default /run/snowflock/agent.sock)\n"
			    "  --hooks DIR     executables that run in each clone (default /etc/snowflock/clone.d)\n"
			    "  --no-identity   leave host name, network, clock, random generator and priorities alone\n";

static void parse_options(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--no-identity"))
			options.no_identity = true;
		else if (!strcmp(argv[i], "--port") && i + 1 < argc)
			options.port = argv[++i];
		else if (!strcmp(argv[i], "--socket") && i + 1 < argc)
			options.socket = argv[++i];
		else if (!strcmp(argv[i], "--hooks") && i + 1 < argc)
			options.hooks = argv[++i];
		else if (!strcmp(argv[i], "--help")) {
			fputs(usage, stdout);
			exit(0);
		} else {
			fprintf(stderr, "sfagent: unknown or incomplete option '%s'\n%s", argv[i], usage);
			exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	if (!options.no_identity) {
		setpriority(PRIO_PROCESS, 0, -10);
		write_file("/proc/self/oom_score_adj", "-1000");
	}
	freezer_open();
	exec_open();
	hold_open();
	connections_open();
	identity_open();
	clients_open();

	static struct poll_set set;
	for (;;) {
		set.count = 0;
		set.timeout_ms = -1;
		port_prepare(&set);
		clients_prepare(&set);
		exec_prepare(&set);
		settle_prepare(&set);
		if (poll(set.fds, (nfds_t)set.count, set.timeout_ms) < 0) {
			if (errno != EINTR)
				die("poll: %s", strerror(errno));
			continue;
		}
		/* The port comes last: a fork found there must see the work of this round done. */
		clients_run(&set);
		exec_run(&set);
		settle_poll(&set);
		port_run(&set);
	}
}
