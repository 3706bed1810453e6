/* The identity of a VM, as IDENTITY tells it, and its network part. */
#ifndef SF_IDENTITY_H
#define SF_IDENTITY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#define ENTROPY_BYTES 64

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

void network_open(void);
bool same_network(const struct identity *a, const struct identity *b);
/* Puts the identity's MAC, MTU and address in force; a VM without the interface has no network. */
void network_set(const struct identity *id);

#endif
