/* The identity of a VM, as IDENTITY tells it, and its network part. */
#ifndef SF_IDENTITY_H
#define SF_IDENTITY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define ENTROPY_BYTES 64

struct identity {
	long clusterid, vmid, nclones;
	long vcpus; /* 0: as many as there are */
	char ticket[37]; /* of the fork; empty at boot */
	char hostname[65];
	bool has_net;
	struct in_addr ip;
	unsigned prefix;
	bool has_ip6;
	struct in6_addr ip6;
	unsigned prefix6;
	unsigned char mac[6];
	int mtu;
	struct in_addr gateway; /* 0: keep the default route there is */
	struct in_addr resolver; /* 0: keep the name servers there are */
	int64_t time_ns;
	bool has_entropy;
	uint8_t entropy[ENTROPY_BYTES];
};

void network_open(void);
bool same_network(const struct identity *a, const struct identity *b);
/* Puts the identity's MAC, MTU, addresses and route in force, in place of those of `old`; a VM without the interface has no network. */
void network_set(const struct identity *id, const struct identity *old);

#endif
