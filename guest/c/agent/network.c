/* The network interface of this VM: all by ioctl on one socket, nothing started and almost nothing opened. */
#define _GNU_SOURCE
#include "agent.h"
#include "identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define INTERFACE "eth0"

static int net_fd = -1;

void network_open(void)
{
	net_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	/* A link-local address made from the first MAC would be the same in every clone. */
	write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/disable_ipv6", "1");
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

bool same_network(const struct identity *a, const struct identity *b)
{
	return a->has_net == b->has_net && a->ip.s_addr == b->ip.s_addr && a->prefix == b->prefix && a->mtu == b->mtu &&
	       !memcmp(a->mac, b->mac, 6);
}

/*
 * Virtio network cards take a new MAC while up, which spares the waits of going down; other cards go down for it.
 */
void network_set(const struct identity *id, bool routed)
{
	static const unsigned char none[6];
	struct ifreq r = request();
	struct in_addr gateway = id->gateway, mask;
	if (!id->has_net || ioctl(net_fd, SIOCGIFINDEX, &r) < 0)
		return; /* no such interface: a VM without a network */
	if (gateway.s_addr == 0 && routed)
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
