/*
 * The TCP connections of the forked VM: in the parent they go on, in a clone they end at once with ECONNABORTED. Without this they would
 * hang there until their time-outs: the clone has another address. Those over the loopback have both ends in the clone and go on.
 *
 * They are listed in the parent while its CPUs are held (its tables are at hand there, a clone would have to fetch them) and destroyed in
 * the clone by SOCK_DESTROY (kernel: net/ipv4/inet_diag.c, CONFIG_INET_DIAG_DESTROY; modules inet_diag and tcp_diag).
 */
#define _GNU_SOURCE
#include "agent.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* More than these stay as they are. */
#define CONNECTIONS_MAX 2048
#define STATES \
	(1u << TCP_ESTABLISHED | 1u << TCP_SYN_SENT | 1u << TCP_SYN_RECV | 1u << TCP_FIN_WAIT1 | 1u << TCP_FIN_WAIT2 | 1u << TCP_CLOSE_WAIT | \
	 1u << TCP_LAST_ACK | 1u << TCP_CLOSING)

struct connection {
	uint8_t family;
	struct inet_diag_sockid id;
};

static int diag_fd = -1, sockstat_fd = -1;
static struct connection connections[CONNECTIONS_MAX];
static size_t count, more;

void connections_open(void)
{
	if (options.no_identity)
		return;
	/* The kernel answers before send returns, or not at all. */
	struct timeval patience = {.tv_sec = 1};
	diag_fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
	setsockopt(diag_fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	sockstat_fd = open("/proc/net/sockstat", O_RDONLY | O_CLOEXEC);
}

/* Whether there is any TCP socket: spares most VMs the walk through the table of all. */
static bool any_tcp(void)
{
	char text[512];
	int inuse;
	ssize_t n = pread(sockstat_fd, text, sizeof text - 1, 0);
	if (n <= 0)
		return true;
	text[n] = 0;
	const char *line = strstr(text, "TCP: inuse ");
	return !line || sscanf(line, "TCP: inuse %d", &inuse) != 1 || inuse > 0;
}

/* 127.0.0.0/8 and ::1, also as an IPv4 address within IPv6. */
static bool is_loopback(const struct connection *c)
{
	const uint32_t *a = c->id.idiag_src;
	if (c->family == AF_INET)
		return ntohl(a[0]) >> 24 == 127;
	if (a[0] == 0 && a[1] == 0 && a[2] == htonl(0xffff))
		return ntohl(a[3]) >> 24 == 127;
	return a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == htonl(1);
}

static void add(const struct inet_diag_msg *m)
{
	struct connection c = {.family = m->idiag_family, .id = m->id};
	if (is_loopback(&c))
		return;
	if (count < CONNECTIONS_MAX)
		connections[count++] = c;
	else
		more++;
}

/* One datagram of the list; false when it is the last one. */
static bool read_list(void)
{
	static uint8_t answer[16384];
	ssize_t n = recv(diag_fd, answer, sizeof answer, 0);
	if (n <= 0)
		return n < 0 && errno == EINTR;
	size_t left = (size_t)n;
	for (struct nlmsghdr *h = (struct nlmsghdr *)answer; NLMSG_OK(h, left); h = NLMSG_NEXT(h, left)) {
		if (h->nlmsg_type == NLMSG_DONE || h->nlmsg_type == NLMSG_ERROR)
			return false;
		if (h->nlmsg_len >= NLMSG_LENGTH(sizeof(struct inet_diag_msg)))
			add(NLMSG_DATA(h));
	}
	return true;
}

void connections_list(void)
{
	/* The older request: one list of both families. */
	struct {
		struct nlmsghdr head;
		struct inet_diag_req body;
	} request = {
		.head = {.nlmsg_len = sizeof request, .nlmsg_type = TCPDIAG_GETSOCK, .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
		.body = {.idiag_states = STATES},
	};
	count = more = 0;
	if (diag_fd < 0 || !any_tcp())
		return;
	if (send(diag_fd, &request, sizeof request, 0) < 0)
		return; /* a kernel without inet_diag */
	while (read_list())
		;
	if (more > 0)
		say("%zu TCP connections are too many: %zu hang in the clones until they time out", count + more, more);
}

void connections_reset(void)
{
	for (size_t i = 0; i < count; i++) {
		struct {
			struct nlmsghdr head;
			struct inet_diag_req_v2 body;
		} request = {
			.head = {.nlmsg_len = sizeof request, .nlmsg_type = SOCK_DESTROY, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK},
			.body = {.sdiag_family = connections[i].family,
				 .sdiag_protocol = IPPROTO_TCP,
				 .idiag_states = STATES,
				 .id = connections[i].id},
		};
		struct {
			struct nlmsghdr head;
			struct nlmsgerr body;
		} answer;
		if (send(diag_fd, &request, sizeof request, 0) < 0 || recv(diag_fd, &answer, sizeof answer, MSG_DONTWAIT) < (ssize_t)sizeof answer)
			say("a TCP connection could not be ended: %s", strerror(errno));
		else if (answer.body.error && answer.body.error != -ENOENT) /* ENOENT: it has ended by itself */
			say("a TCP connection could not be ended: %s", strerror(-answer.body.error));
	}
	count = 0;
}
