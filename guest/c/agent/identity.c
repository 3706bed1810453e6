/*
 * Who this VM is. Everything needed is opened at start: after a fork each page and each file touched first costs a clone a fetch over the
 * network while its CPUs are held.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define TEXT_MAX 4096u
#define IDENTITY_FILE "/run/snowflock/identity"
#define IDENTITY_FILE_BYTES 512

static struct identity current = {.clusterid = -1, .vmid = -1};
static int random_fd = -1;
static char *file_map; /* of IDENTITY_FILE; NULL without it */

void identity_open(void)
{
	if (options.no_identity)
		return;
	random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	network_open();
	mkdir("/run/snowflock", 0755);
	int fd = open(IDENTITY_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	void *map = MAP_FAILED;
	if (fd >= 0 && ftruncate(fd, IDENTITY_FILE_BYTES) == 0)
		map = mmap(NULL, IDENTITY_FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		say("%s: %s", IDENTITY_FILE, strerror(errno));
	else
		file_map = map;
	if (fd >= 0)
		close(fd);
}

bool identity_known(long *clusterid, long *vmid)
{
	*clusterid = current.clusterid;
	*vmid = current.vmid;
	return current.vmid >= 0;
}

static bool parse_number(const char *s, int64_t min, int64_t max, int64_t *out)
{
	char *end;
	errno = 0;
	long long v = strtoll(s, &end, 10);
	if (errno || end == s || *end || v < min || v > max)
		return false;
	*out = v;
	return true;
}

static bool parse_mac(const char *s, unsigned char mac[6])
{
	unsigned b[6];
	char rest;
	if (sscanf(s, "%2x:%2x:%2x:%2x:%2x:%2x%c", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &rest) != 6)
		return false;
	for (int i = 0; i < 6; i++)
		mac[i] = (unsigned char)b[i];
	return true;
}

static bool parse_entropy(const char *s, uint8_t out[ENTROPY_BYTES])
{
	if (strlen(s) != 2 * ENTROPY_BYTES)
		return false;
	for (int i = 0; i < ENTROPY_BYTES; i++) {
		unsigned b;
		if (sscanf(s + 2 * i, "%2x", &b) != 1)
			return false;
		out[i] = (uint8_t)b;
	}
	return true;
}

static bool parse_hostname(const char *s, char out[65])
{
	if (!*s || strlen(s) > 63 || strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.") != strlen(s))
		return false;
	strcpy(out, s);
	return true;
}

/* One key; false when its value cannot be right. Unknown keys are ignored. */
static bool parse_key(struct identity *id, const char *key, const char *value)
{
	int64_t v = 0;
	bool ok = true;
	if (!strcmp(key, "clusterid") && (ok = parse_number(value, 0, INT32_MAX, &v)))
		id->clusterid = (long)v;
	else if (!strcmp(key, "vmid") && (ok = parse_number(value, 0, INT32_MAX, &v)))
		id->vmid = (long)v;
	else if (!strcmp(key, "nclones") && (ok = parse_number(value, 0, INT32_MAX, &v)))
		id->nclones = (long)v;
	else if (!strcmp(key, "hostname"))
		ok = parse_hostname(value, id->hostname);
	else if (!strcmp(key, "ip"))
		ok = id->has_net = inet_pton(AF_INET, value, &id->ip) == 1;
	else if (!strcmp(key, "gateway"))
		ok = inet_pton(AF_INET, value, &id->gateway) == 1;
	else if (!strcmp(key, "prefix") && (ok = parse_number(value, 1, 32, &v)))
		id->prefix = (unsigned)v;
	else if (!strcmp(key, "mac"))
		ok = parse_mac(value, id->mac);
	else if (!strcmp(key, "mtu") && (ok = parse_number(value, 68, 65535, &v)))
		id->mtu = (int)v;
	else if (!strcmp(key, "time_ns") && (ok = parse_number(value, 0, INT64_MAX, &v)))
		id->time_ns = v;
	else if (!strcmp(key, "entropy"))
		ok = id->has_entropy = parse_entropy(value, id->entropy);
	return ok;
}

static bool parse(struct identity *id, const uint8_t *text, size_t len)
{
	static char copy[TEXT_MAX];
	if (len >= sizeof copy || memchr(text, 0, len))
		return false;
	memcpy(copy, text, len);
	copy[len] = 0;
	*id = (struct identity){.clusterid = -1, .vmid = -1};
	for (char *save, *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *equals = strchr(line, '=');
		if (!equals)
			return false;
		*equals = 0;
		if (!parse_key(id, line, equals + 1)) {
			say("identity: '%s' has no such value", line);
			return false;
		}
	}
	explicit_bzero(copy, sizeof copy);
	return id->clusterid >= 0 && id->vmid >= 0;
}

static void reseed(const struct identity *id)
{
	struct {
		int entropy_count, buf_size;
		uint8_t buf[ENTROPY_BYTES];
	} pool = {ENTROPY_BYTES * 8, ENTROPY_BYTES, {0}};
	if (!id->has_entropy)
		return;
	memcpy(pool.buf, id->entropy, sizeof pool.buf);
	if (ioctl(random_fd, RNDADDENTROPY, &pool) < 0 || ioctl(random_fd, RNDRESEEDCRNG) < 0)
		say("cannot reseed the random generator: %s", strerror(errno));
	explicit_bzero(&pool, sizeof pool);
}

static void set_clock(const struct identity *id)
{
	struct timespec t = {.tv_sec = id->time_ns / 1000000000, .tv_nsec = id->time_ns % 1000000000};
	if (id->time_ns > 0 && clock_settime(CLOCK_REALTIME, &t) < 0)
		say("cannot set the clock: %s", strerror(errno));
}

/* The file is mapped, always of the same length and filled up with newlines: changing it is a copy, not a walk through a file system. */
static void write_identity(const struct identity *id)
{
	char text[IDENTITY_FILE_BYTES], ip[INET_ADDRSTRLEN] = "";
	if (!file_map)
		return;
	inet_ntop(AF_INET, &id->ip, ip, sizeof ip);
	int n = snprintf(text, sizeof text,
			 "clusterid=%ld\nvmid=%ld\nnclones=%ld\nhostname=%s\nip=%s\nprefix=%u\nmac=%02x:%02x:%02x:%02x:%02x:%02x\nmtu=%d\n",
			 id->clusterid, id->vmid, id->nclones, id->hostname, ip, id->prefix, id->mac[0], id->mac[1], id->mac[2],
			 id->mac[3], id->mac[4], id->mac[5], id->mtu);
	memset(text + n, '\n', sizeof text - (size_t)n);
	memcpy(file_map, text, sizeof text);
}

/* The generator first: nothing that draws from it may run before. */
static void become(const struct identity *id)
{
	reseed(id);
	set_clock(id);
	if (id->hostname[0] && strcmp(id->hostname, current.hostname) && sethostname(id->hostname, strlen(id->hostname)) < 0)
		say("host name: %s", strerror(errno));
	if (!same_network(id, &current))
		network_set(id);
	write_identity(id);
}

static void answer_fork(uint32_t id)
{
	char text[64];
	int n = snprintf(text, sizeof text, "ok %ld %ld", current.nclones, current.vmid);
	clients_interrupt(id);
	clients_reply(id, text, (size_t)n);
}

void identity_apply(uint32_t id, const uint8_t *text, size_t len, void (*release)(void))
{
	struct identity next;
	if (!parse(&next, text, len)) {
		say("the host sent an identity that cannot be read: ignored");
		return;
	}
	bool fork = id != 0;
	bool clone = fork && next.vmid != current.vmid;
	if (fork && !clone) {
		if (!options.no_identity)
			set_clock(&next);
		explicit_bzero(next.entropy, sizeof next.entropy);
		return; /* the master VM: release follows, the REPLY comes later */
	}
	if (!options.no_identity)
		become(&next);
	explicit_bzero(next.entropy, sizeof next.entropy);
	current = next;
	if (clone) {
		exec_orphan();
		port_forget_input();
	}
	if (release)
		release();
	port_send(FRAME_IDENTIFIED, id, NULL, 0, NULL, 0);
	port_flush();
	if (clone)
		answer_fork(id);
}
