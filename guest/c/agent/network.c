/*
 * The network interface of this VM: by ioctl and rtnetlink on two sockets, nothing started and nothing opened after the start. In a
 * clone each kernel path that is taken costs fetches (and, under emulation, translation), so what need not change is left alone.
 */
#define _GNU_SOURCE
#include "agent.h"
#include "identity.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define INTERFACE "eth0"

static int net_fd = -1, route_fd = -1;

void network_open(void)
{
	net_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	route_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
	write_file("/proc/sys/net/ipv4/conf/" INTERFACE "/promote_secondaries", "1");
	/*
	 * IPv6 has the address of the identity and no other: one made from the first MAC would be the same in every clone, and there is
	 * nobody to ask for one.
	 */
	write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/disable_ipv6", "1");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/addr_gen_mode", "1");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/accept_ra", "0");
	write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/accept_dad", "0");
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

static void set_flags(short on, short off)
{
	struct ifreq r = request();
	if (!change(SIOCGIFFLAGS, &r, "flags"))
		return;
	short flags = (short)((r.ifr_flags | on) & ~off);
	if (flags == r.ifr_flags)
		return;
	r.ifr_flags = flags;
	change(SIOCSIFFLAGS, &r, "up or down");
}

struct address_request {
	struct nlmsghdr head;
	struct ifaddrmsg body;
	struct {
		struct rtattr head;
		struct in_addr value;
	} local, broadcast;
};

static void fill_address(struct address_request *r, int type, int index, struct in_addr ip, unsigned prefix)
{
	struct in_addr broadcast = {ip.s_addr | (prefix < 32 ? htonl(0xffffffffu >> prefix) : 0)};
	memset(r, 0, sizeof *r);
	r->head.nlmsg_len = sizeof *r;
	r->head.nlmsg_type = (unsigned short)type;
	r->head.nlmsg_flags = NLM_F_REQUEST | (type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_REPLACE : 0);
	r->body.ifa_family = AF_INET;
	r->body.ifa_prefixlen = (unsigned char)prefix;
	r->body.ifa_index = (unsigned)index;
	r->local.head = (struct rtattr){.rta_len = sizeof r->local, .rta_type = IFA_LOCAL};
	r->local.value = ip;
	r->broadcast.head = (struct rtattr){.rta_len = sizeof r->broadcast, .rta_type = IFA_BROADCAST};
	r->broadcast.value = broadcast;
}

/* Sends the requests in one go; the kernel works them off before send() returns, then an answer waits for each that failed. */
static void change_addresses(const void *requests, size_t bytes)
{
	char answer[1024];
	if (send(route_fd, requests, bytes, 0) < 0) {
		say("%s: address: %s", INTERFACE, strerror(errno));
		return;
	}
	for (;;) {
		const struct nlmsghdr *h = (const void *)answer;
		if (recv(route_fd, answer, sizeof answer, MSG_DONTWAIT) < (ssize_t)NLMSG_LENGTH(sizeof(int)))
			return;
		int error = *(const int *)NLMSG_DATA(h);
		if (h->nlmsg_type == NLMSG_ERROR && error)
			say("%s: address: %s", INTERFACE, strerror(-error));
	}
}

struct address6_request {
	struct nlmsghdr head;
	struct ifaddrmsg body;
	struct rtattr local;
	struct in6_addr value;
};

static void fill_address6(struct address6_request *r, int type, int index, const struct identity *id)
{
	*r = (struct address6_request){
		.head = {.nlmsg_len = sizeof *r,
			 .nlmsg_type = (unsigned short)type,
			 .nlmsg_flags = (unsigned short)(NLM_F_REQUEST | (type == RTM_NEWADDR ? NLM_F_CREATE | NLM_F_REPLACE : 0))},
		.body = {.ifa_family = AF_INET6,
			 .ifa_prefixlen = (unsigned char)id->prefix6,
			 .ifa_flags = IFA_F_NODAD,
			 .ifa_index = (unsigned)index},
		.local = {.rta_len = RTA_LENGTH(sizeof r->value), .rta_type = IFA_LOCAL},
		.value = id->ip6,
	};
}

static void set_address6(int index, const struct identity *id, const struct identity *old)
{
	struct address6_request requests[2];
	size_t count = 0;
	if (!id->has_ip6)
		return;
	if (!old->has_ip6)
		write_file("/proc/sys/net/ipv6/conf/" INTERFACE "/disable_ipv6", "0");
	else if (!memcmp(&old->ip6, &id->ip6, sizeof id->ip6) && old->prefix6 == id->prefix6)
		return;
	else
		fill_address6(&requests[count++], RTM_DELADDR, index, old);
	fill_address6(&requests[count++], RTM_NEWADDR, index, id);
	change_addresses(requests, count * sizeof *requests);
}

static bool get_address(unsigned long what, struct in_addr *out)
{
	struct ifreq r = request();
	struct sockaddr_in in;
	if (ioctl(net_fd, what, &r) < 0)
		return false;
	memcpy(&in, &r.ifr_addr, sizeof in);
	*out = in.sin_addr;
	return true;
}

/*
 * The new address first, then the old one away: the second takes its place in the subnet (promote_secondaries), so a default route
 * through it stays.
 */
static void set_address(int index, struct in_addr ip, unsigned prefix)
{
	struct address_request requests[2];
	struct in_addr old, mask;
	size_t count = 1;
	fill_address(&requests[0], RTM_NEWADDR, index, ip, prefix);
	if (get_address(SIOCGIFADDR, &old) && old.s_addr != 0 && get_address(SIOCGIFNETMASK, &mask)) {
		unsigned old_prefix = (unsigned)__builtin_popcount(mask.s_addr);
		if (old.s_addr == ip.s_addr && old_prefix == prefix)
			return;
		fill_address(&requests[count++], RTM_DELADDR, index, old, old_prefix);
	}
	change_addresses(requests, count * sizeof *requests);
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
	       a->has_ip6 == b->has_ip6 && !memcmp(&a->ip6, &b->ip6, sizeof a->ip6) && a->gateway.s_addr == b->gateway.s_addr &&
	       !memcmp(a->mac, b->mac, 6);
}

/*
 * Virtio network cards take a new MAC while up, which spares the waits of going down; other cards go down for it.
 */
void network_set(const struct identity *id, const struct identity *old)
{
	static const unsigned char none[6];
	struct ifreq r = request();
	if (!id->has_net || ioctl(net_fd, SIOCGIFINDEX, &r) < 0)
		return; /* no such interface: a VM without a network */
	int index = r.ifr_ifindex;
	if (memcmp(id->mac, none, 6)) {
		r = request();
		r.ifr_hwaddr.sa_family = ARPHRD_ETHER;
		memcpy(r.ifr_hwaddr.sa_data, id->mac, 6);
		if (ioctl(net_fd, SIOCSIFHWADDR, &r) < 0) {
			set_flags(0, IFF_UP);
			change(SIOCSIFHWADDR, &r, "hardware address");
		}
	}
	r = request();
	if (id->mtu && (ioctl(net_fd, SIOCGIFMTU, &r) < 0 || r.ifr_mtu != id->mtu)) {
		r.ifr_mtu = id->mtu;
		change(SIOCSIFMTU, &r, "MTU");
	}
	set_address(index, id->ip, id->prefix ? id->prefix : 32);
	set_flags(IFF_UP, 0);
	set_address6(index, id, old);
	if (id->gateway.s_addr && id->gateway.s_addr != old->gateway.s_addr)
		add_default_route(id->gateway);
}
