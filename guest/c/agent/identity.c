/*
 * Who this VM is. Everything needed is opened at start: after a fork each page and each file touched first costs a clone a fetch over the
 * network while its CPUs are held.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define INTERFACE "eth0"
#define TEXT_MAX 4096u
#define ENTROPY_BYTES 64
#define IDENTITY_FILE "/run/snowflock/identity"

struct identity {
	long clusterid, vmid, nclones;
	char hostname[65];
	bool has_net;
	struct in_addr ip;
	unsigned prefix;
	unsigned char mac[6];
	int mtu;
	struct in_addr gateway; /* 0: keep the default route there is */
	int64_t time_ns;
	bool has_entropy;
	uint8_t entropy[ENTROPY_BYTES];
};

static struct identity current = {.clusterid = -1, .vmid = -1};
static int random_fd = -1, net_fd = -1, file_fd = -1;

void identity_open(void)
{
	if (options.no_identity)
		return;
	random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	net_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	mkdir("/run/snowflock", 0755);
	file_fd = open(IDENTITY_FILE, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
	/* A link-local address made from the first MAC would be the same in every clone. */
	write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/disable_ipv6", "1");
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

static struct ifreq request(void)
{
	struct ifreq r;
	memset(&r, 0, sizeof r);
	strcpy(r.ifr_name, INTERFACE);
	return r;
}

static bool change(unsigned long what, struct ifreq *r, const char *name)
{
	if (ioctl(net_fd, what, r) == 0)
		return true;
	say("%s: %s: %s", INTERFACE, name, strerror(errno));
	return false;
}

static void set_address(unsigned long what, struct in_addr addr, const char *name)
{
	struct ifreq r = request();
	struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = addr};
	memcpy(&r.ifr_addr, &in, sizeof in);
	change(what, &r, name);
}

static void set_flags(short on, short off)
{
	struct ifreq r = request();
	if (!change(SIOCGIFFLAGS, &r, "flags"))
		return;
	r.ifr_flags = (short)((r.ifr_flags | on) & ~off);
	change(SIOCSIFFLAGS, &r, "up or down");
}

/* The gateway of the default route through the interface, 0 if none: a change of address takes that route away. */
static struct in_addr default_gateway(void)
{
	char text[2048], *line;
	struct in_addr gateway = {0};
	int fd = open("/proc/net/route", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	for (line = text; (line = strchr(line, '\n'));) {
		char name[32];
		unsigned dest, via, flags;
		if (sscanf(++line, "%31s %x %x %x", name, &dest, &via, &flags) == 4 && !strcmp(name, INTERFACE) && dest == 0 &&
		    (flags & RTF_GATEWAY))
			gateway.s_addr = via; /* printed in the kernel's own byte order */
	}
	return gateway;
}

static void add_default_route(struct in_addr gateway)
{
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	struct sockaddr_in any = {.sin_family = AF_INET}, via = {.sin_family = AF_INET, .sin_addr = gateway};
	memcpy(&route.rt_dst, &any, sizeof any);
	memcpy(&route.rt_genmask, &any, sizeof any);
	memcpy(&route.rt_gateway, &via, sizeof via);
	if (ioctl(net_fd, SIOCADDRT, &route) < 0 && errno != EEXIST)
		say("default route: %s", strerror(errno));
}

static bool same_net(const struct identity *a, const struct identity *b)
{
	return a->has_net == b->has_net && a->ip.s_addr == b->ip.s_addr && a->prefix == b->prefix && a->mtu == b->mtu &&
	       !memcmp(a->mac, b->mac, 6);
}

/*
 * Virtio network cards take a new MAC while up, which spares the waits of going down; other cards go down for it.
 */
static void set_network(const struct identity *id)
{
	static const unsigned char none[6];
	struct ifreq r = request();
	struct in_addr gateway = id->gateway, mask;
	if (!id->has_net || ioctl(net_fd, SIOCGIFINDEX, &r) < 0)
		return; /* no such interface: a VM without a network */
	if (gateway.s_addr == 0 && current.has_net)
		gateway = default_gateway();
	if (memcmp(id->mac, none, 6)) {
		r = request();
		r.ifr_hwaddr.sa_family = ARPHRD_ETHER;
		memcpy(r.ifr_hwaddr.sa_data, id->mac, 6);
		if (ioctl(net_fd, SIOCSIFHWADDR, &r) < 0) {
			set_flags(0, IFF_UP);
			change(SIOCSIFHWADDR, &r, "hardware address");
		}
	}
	if (id->mtu) {
		r = request();
		r.ifr_mtu = id->mtu;
		change(SIOCSIFMTU, &r, "MTU");
	}
	set_address(SIOCSIFADDR, id->ip, "address");
	if (id->prefix) {
		mask.s_addr = htonl(0xffffffffu << (32 - id->prefix));
		set_address(SIOCSIFNETMASK, mask, "netmask");
	}
	set_flags(IFF_UP, 0);
	if (gateway.s_addr)
		add_default_route(gateway);
}

static void write_identity(const struct identity *id)
{
	char text[512], ip[INET_ADDRSTRLEN] = "";
	inet_ntop(AF_INET, &id->ip, ip, sizeof ip);
	int n = snprintf(text, sizeof text,
			 "clusterid=%ld\nvmid=%ld\nnclones=%ld\nhostname=%s\nip=%s\nprefix=%u\nmac=%02x:%02x:%02x:%02x:%02x:%02x\nmtu=%d\n",
			 id->clusterid, id->vmid, id->nclones, id->hostname, ip, id->prefix, id->mac[0], id->mac[1], id->mac[2],
			 id->mac[3], id->mac[4], id->mac[5], id->mtu);
	if (file_fd < 0 || ftruncate(file_fd, 0) < 0 || pwrite(file_fd, text, (size_t)n, 0) != n)
		say("%s: %s", IDENTITY_FILE, strerror(errno));
}

/* The generator first: nothing that draws from it may run before. */
static void become(const struct identity *id)
{
	reseed(id);
	set_clock(id);
	if (id->hostname[0] && strcmp(id->hostname, current.hostname) && sethostname(id->hostname, strlen(id->hostname)) < 0)
		say("host name: %s", strerror(errno));
	if (!same_net(id, &current))
		set_network(id);
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
