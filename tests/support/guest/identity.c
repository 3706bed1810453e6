/*
 * What programs see of a fork, each command in a FILE that it keeps up to date; one static program:
 *
 *   identity watch FILE              the identities seen so far, one a line: host name, address, MAC
 *   identity serve PORT              echoes what comes on TCP and UDP
 *   identity tcp IP PORT FILE        sends and receives on one connection: "alive N", then "error NAME"
 *   identity udp IP PORT FILE        the same over a connected UDP socket
 *   identity timers FILE             "realtime NAME" when an absolute timer is cancelled by a set clock, "relative fired" after 3 s
 *   identity spin N FILE             one busy thread bound to each of N CPUs; their counts
 *   identity lock FILE               locks it, for good, and writes its pid to it
 *   identity trylock FILE            prints "held" or "free"
 *   identity draw same|fresh FILE    seeds the C library's generators, makes two clones, draws
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sf.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <unistd.h>

#define SEEN_MAX 16
#define CPUS_MAX 16

static void put(const char *path, const char *text)
{
	char unfinished[256];
	snprintf(unfinished, sizeof unfinished, "%s.new", path);
	FILE *f = fopen(unfinished, "w");
	if (!f || fputs(text, f) < 0 || fclose(f) != 0 || rename(unfinished, path) < 0) {
		perror(path);
		exit(1);
	}
}

static int watch(const char *path)
{
	static char seen[SEEN_MAX][256], all[SEEN_MAX * 256];
	int count = 0, fd = socket(AF_INET, SOCK_DGRAM, 0);
	for (;;) {
		struct utsname before, after;
		struct ifreq address = {.ifr_name = "eth0"}, mac = {.ifr_name = "eth0"};
		char now[256], ip[INET_ADDRSTRLEN];
		struct sockaddr_in in;
		uname(&before);
		if (ioctl(fd, SIOCGIFADDR, &address) < 0 || ioctl(fd, SIOCGIFHWADDR, &mac) < 0)
			return 1;
		uname(&after);
		if (strcmp(before.nodename, after.nodename))
			continue; /* the fork lay between: what was read belongs to two VMs */
		memcpy(&in, &address.ifr_addr, sizeof in);
		inet_ntop(AF_INET, &in.sin_addr, ip, sizeof ip);
		const unsigned char *m = (const unsigned char *)mac.ifr_hwaddr.sa_data;
		snprintf(now, sizeof now, "%s %s %02x:%02x:%02x:%02x:%02x:%02x\n", after.nodename, ip, m[0], m[1], m[2], m[3], m[4], m[5]);
		if (count > 0 && !strcmp(seen[count - 1], now))
			continue;
		if (count == SEEN_MAX)
			return 1;
		strcpy(seen[count++], now);
		strcat(all, now);
		put(path, all);
	}
}

static int serve(int port)
{
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	struct pollfd fds[32];
	int listener = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0), on = 1, count = 2;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(listener, (struct sockaddr *)&any, sizeof any) < 0 || listen(listener, 8) < 0 || bind(udp, (struct sockaddr *)&any, sizeof any) < 0)
		return 1;
	fds[0] = (struct pollfd){listener, POLLIN, 0};
	fds[1] = (struct pollfd){udp, POLLIN, 0};
	for (;;) {
		char chunk[512];
		struct sockaddr_in from;
		socklen_t size = sizeof from;
		ssize_t n;
		if (poll(fds, (nfds_t)count, -1) < 0 && errno != EINTR)
			return 1;
		if ((fds[1].revents & POLLIN) && (n = recvfrom(udp, chunk, sizeof chunk, 0, (struct sockaddr *)&from, &size)) > 0)
			sendto(udp, chunk, (size_t)n, 0, (struct sockaddr *)&from, size);
		for (int i = 2; i < count; i++)
			if (fds[i].revents) {
				n = read(fds[i].fd, chunk, sizeof chunk);
				if (n <= 0 || write(fds[i].fd, chunk, (size_t)n) != n) {
					close(fds[i].fd);
					fds[i--] = fds[--count];
				}
			}
		if ((fds[0].revents & POLLIN) && count < 32)
			fds[count++] = (struct pollfd){accept(listener, NULL, NULL), POLLIN, 0};
	}
}

static int talk(int type, const char *ip, int port, const char *path)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	char text[64], byte = 'x';
	int fd = socket(AF_INET, type, 0);
	inet_pton(AF_INET, ip, &to.sin_addr);
	if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) {
		perror("connect");
		return 1;
	}
	/* An answer by UDP may be lost, or belong to the VM that was forked meanwhile: send again. */
	struct timeval patience = {.tv_sec = 1};
	if (type == SOCK_DGRAM)
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	for (unsigned round = 1;; round++) {
		if (write(fd, &byte, 1) != 1)
			break;
		if (read(fd, &byte, 1) != 1) {
			if (errno == EAGAIN)
				continue;
			break;
		}
		snprintf(text, sizeof text, "alive %u\n", round);
		put(path, text);
		/* A reader that waits, as most programs do. */
		struct pollfd p = {fd, POLLIN, 0};
		if (poll(&p, 1, 200) > 0 && read(fd, &byte, 1) < 0)
			break;
	}
	snprintf(text, sizeof text, "error %s\n", strerrorname_np(errno));
	put(path, text);
	return 0;
}

static int timers(const char *path)
{
	struct itimerspec hour = {.it_value = {0}}, three = {.it_value = {.tv_sec = 3}};
	char all[256] = "";
	uint64_t ticks;
	struct timespec now;
	int realtime = timerfd_create(CLOCK_REALTIME, 0), relative = timerfd_create(CLOCK_MONOTONIC, 0);
	clock_gettime(CLOCK_REALTIME, &now);
	hour.it_value.tv_sec = now.tv_sec + 3600;
	timerfd_settime(realtime, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &hour, NULL);
	timerfd_settime(relative, 0, &three, NULL);
	put(path, "armed\n");
	struct pollfd fds[2] = {{realtime, POLLIN, 0}, {relative, POLLIN, 0}};
	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		if (poll(fds, 2, -1) < 0)
			continue;
		if (fds[0].revents) {
			strcat(all, read(realtime, &ticks, sizeof ticks) < 0 ? "realtime " : "realtime fired ");
			strcat(strcat(all, strerrorname_np(errno)), "\n");
			fds[0].fd = -1;
		}
		if (fds[1].revents) {
			strcat(all, read(relative, &ticks, sizeof ticks) == sizeof ticks ? "relative fired\n" : "relative wrong\n");
			fds[1].fd = -1;
		}
		put(path, all);
	}
	return 0;
}

static volatile uint64_t counts[CPUS_MAX];

static void *spinner(void *arg)
{
	cpu_set_t one;
	uintptr_t cpu = (uintptr_t)arg;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof one, &one);
	for (;;)
		counts[cpu]++;
	return NULL;
}

static void spin(int cpus, const char *path)
{
	pthread_t thread;
	for (int cpu = 0; cpu < cpus && cpu < CPUS_MAX; cpu++)
		pthread_create(&thread, NULL, spinner, (void *)(uintptr_t)cpu);
	for (;;) {
		char all[CPUS_MAX * 24] = "";
		for (int cpu = 0; cpu < cpus; cpu++)
			snprintf(all + strlen(all), sizeof all - strlen(all), cpu ? " %llu" : "%llu", (unsigned long long)counts[cpu]);
		strcat(all, "\n");
		put(path, all);
		usleep(50000);
	}
}

static int lock(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);
	if (flock(fd, LOCK_EX) < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0)
		return 1;
	for (;;)
		pause();
}

static int trylock(const char *path)
{
	puts(flock(open(path, O_RDWR), LOCK_EX | LOCK_NB) == 0 ? "free" : errno == EWOULDBLOCK ? "held" : strerror(errno));
	return 0;
}

static int draw(const char *seed, const char *path)
{
	char text[128];
	srand(42);
	srand48(42);
	struct sf_result *granted = REQUEST_VM_TICKET(2);
	struct sf_result *forked = granted ? sf_clone_master(granted->ticket, strcmp(seed, "same") ? SF_SEED_FRESH : SF_SEED_SAME) : NULL;
	if (!forked) {
		fprintf(stderr, "%s\n", sf_last_error());
		return 1;
	}
	snprintf(text, sizeof text, "%d %ld %.17f\n", rand(), random(), drand48());
	put(path, text);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "watch") && argc == 3)
		return watch(argv[2]);
	if (!strcmp(what, "serve") && argc == 3)
		return serve(atoi(argv[2]));
	if (!strcmp(what, "tcp") && argc == 5)
		return talk(SOCK_STREAM, argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(what, "udp") && argc == 5)
		return talk(SOCK_DGRAM, argv[2], atoi(argv[3]), argv[4]);
	if (!strcmp(what, "timers") && argc == 3)
		return timers(argv[2]);
	if (!strcmp(what, "spin") && argc == 4)
		spin(atoi(argv[2]), argv[3]);
	if (!strcmp(what, "lock") && argc == 3)
		return lock(argv[2]);
	if (!strcmp(what, "trylock") && argc == 3)
		return trylock(argv[2]);
	if (!strcmp(what, "draw") && argc == 4)
		return draw(argv[2], argv[3]);
	fprintf(stderr, "identity: unknown command '%s'\n", what);
	return 2;
}
