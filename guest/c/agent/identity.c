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
#define RESOLVER_FILE "/etc/resolv.conf"
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

/*
 * Numbers and text are read and written here by hand: in a clone all code runs for the first time, and under emulation translating
 * stdio's for them took 8 ms of its CPU time.
 */
static bool parse_number(const char *s, int64_t min, int64_t max, int64_t *out)
{
	int64_t v = 0;
	if (!*s)
		return false;
	for (; *s; s++) {
		if (*s < '0' || *s > '9' || v > (INT64_MAX - 9) / 10)
			return false;
		v = 10 * v + (*s - '0');
	}
	*out = v;
	return v >= min && v <= max;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Two digits; stops at the end of the text. */
static bool parse_byte(const char *s, unsigned char *out)
{
	int high = hex_digit(s[0]), low = high < 0 ? -1 : hex_digit(s[1]);
	if (low < 0)
		return false;
	*out = (unsigned char)(high << 4 | low);
	return true;
}

static bool parse_mac(const char *s, unsigned char mac[6])
{
	for (int i = 0; i < 6; i++, s += 3)
		if (!parse_byte(s, &mac[i]) || s[2] != (i < 5 ? ':' : 0))
			return false;
	return true;
}

static bool parse_entropy(const char *s, uint8_t out[ENTROPY_BYTES])
{
	for (int i = 0; i < ENTROPY_BYTES; i++, s += 2)
		if (!parse_byte(s, &out[i]))
			return false;
	return !*s;
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
	else if (!strcmp(key, "vcpus") && (ok = parse_number(value, 1, 4096, &v)))
		id->vcpus = (long)v;
	else if (!strcmp(key, "ticket") && (ok = strlen(value) < sizeof id->ticket))
		strcpy(id->ticket, value);
	else if (!strcmp(key, "hostname"))
		ok = parse_hostname(value, id->hostname);
	else if (!strcmp(key, "ip"))
		ok = id->has_net = inet_pton(AF_INET, value, &id->ip) == 1;
	else if (!strcmp(key, "ip6"))
		ok = id->has_ip6 = inet_pton(AF_INET6, value, &id->ip6) == 1;
	else if (!strcmp(key, "prefix6") && (ok = parse_number(value, 1, 128, &v)))
		id->prefix6 = (unsigned)v;
	else if (!strcmp(key, "resolver"))
		ok = inet_pton(AF_INET, value, &id->resolver) == 1;
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

/* In decimal, with its end; answers that. Not negative. */
static char *put_number(char *at, long value)
{
	char digits[24];
	int n = 0;
	do
		digits[n++] = (char)('0' + value % 10);
	while ((value /= 10) > 0);
	while (n > 0)
		*at++ = digits[--n];
	*at = 0;
	return at;
}

/* The file is mapped, always of the same length and filled up with newlines: changing it is a copy, not a walk through a file system. */
static void write_identity(const struct identity *id)
{
	char text[IDENTITY_FILE_BYTES], *at = text;
	const unsigned char *ip = (const unsigned char *)&id->ip;
	if (!file_map)
		return;
	at = put_number(stpcpy(at, "clusterid="), id->clusterid);
	at = put_number(stpcpy(at, "\nvmid="), id->vmid);
	at = put_number(stpcpy(at, "\nnclones="), id->nclones);
	at = stpcpy(stpcpy(at, "\nhostname="), id->hostname);
	at = stpcpy(at, "\nip=");
	for (int i = 0; id->has_net && i < 4; i++)
		at = stpcpy(put_number(at, ip[i]), i < 3 ? "." : "");
	at = put_number(stpcpy(at, "\nprefix="), id->prefix);
	at = stpcpy(at, "\nmac=");
	for (int i = 0; i < 6; i++) {
		*at++ = "0123456789abcdef"[id->mac[i] >> 4];
		*at++ = "0123456789abcdef"[id->mac[i] & 15];
		at = stpcpy(at, i < 5 ? ":" : "\nmtu=");
	}
	at = put_number(at, id->mtu);
	memset(at, '\n', (size_t)(text + sizeof text - at));
	memcpy(file_map, text, sizeof text);
}

/* Of a VM that boots; its clones have the file. */
static void set_resolver(const struct identity *id)
{
	char text[64] = "nameserver ", *at = text + strlen(text);
	const unsigned char *ip = (const unsigned char *)&id->resolver;
	for (int i = 0; i < 4; i++)
		at = stpcpy(put_number(at, ip[i]), i < 3 ? "." : "\n");
	int fd = open(RESOLVER_FILE, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, (size_t)(at - text)) != at - text)
		say("%s: %s", RESOLVER_FILE, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* The generator first: nothing that draws from it may run before. */
static void become(const struct identity *id)
{
	reseed(id);
	set_clock(id);
	if (id->hostname[0] && strcmp(id->hostname, current.hostname) && sethostname(id->hostname, strlen(id->hostname)) < 0)
		say("host name: %s", strerror(errno));
	if (!same_network(id, &current))
		network_set(id, &current);
	if (id->resolver.s_addr && id->resolver.s_addr != current.resolver.s_addr)
		set_resolver(id);
	write_identity(id);
}

void identity_answer(uint32_t id)
{
	char text[64];
	char *end = put_number(stpcpy(text, "ok "), current.nclones);
	end = put_number(stpcpy(end, " "), current.vmid);
	clients_reply(id, text, (size_t)(end - text));
}

void identity_apply(uint32_t id, const uint8_t *text, size_t len, void (*release)(void))
{
	struct identity next;
	if (!parse(&next, text, len)) {
		say("the host sent an identity that cannot be read: ignored");
		return;
	}
	bool fork = id != 0;
	/* of another cluster: started from a checkpoint */
	bool clone = fork && (next.vmid != current.vmid || next.clusterid != current.clusterid);
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
	bool settling = clone && release && settle_begin(&current);
	if (release)
		release();
	port_send(FRAME_IDENTIFIED, id, "settling", settling ? strlen("settling") : 0, NULL, 0);
	port_flush();
	if (!clone)
		return;
	connections_reset();
	clients_interrupt(id);
	if (!settling)
		identity_answer(id);
}
