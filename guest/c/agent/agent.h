/*
 * sfagent: the parts of the agent and what each owns.
 *
 *   main      options, the poll loop
 *   port      the link to sfld: input and output queues, loss and return of the link
 *   clients   connections on the agent socket and the calls they wait for
 *   exec      commands run for the host
 *   hold      the CPUs, from HOLD to IDENTITY
 *   identity  who this VM is: generator, clock, name
 *   network   its interface and address
 *
 * One thread runs all of it. The only other threads are hold's, which spin and touch nothing.
 */
#ifndef SF_AGENT_H
#define SF_AGENT_H

#include "frame.h"

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct options {
	const char *port;   /* NULL: look for the virtio port named "snowflock" */
	const char *socket; /* the agent socket */
	bool no_identity;   /* tests on a plain host: leave name, network, clock, generator and priorities alone */
};
extern struct options options;

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
int64_t now_ms(void); /* CLOCK_MONOTONIC */
/* Writes a short text into an existing file; false if that fails. */
bool write_file(const char *path, const char *text);
void power_off(void);

/* What the poll loop waits for: each part adds its descriptors before a poll and reads the outcome after it. */
#define POLL_MAX 512
struct poll_set {
	struct pollfd fds[POLL_MAX];
	int count;
	int timeout_ms; /* -1: none */
};
/* The place of the descriptor in the set, or -1 when the set is full. */
int poll_add(struct poll_set *set, int fd, short events);
void poll_timeout(struct poll_set *set, int timeout_ms);
static inline short poll_events(const struct poll_set *set, int place) { return place < 0 ? 0 : set->fds[place].revents; }

/* port */
void port_prepare(struct poll_set *set);
void port_run(const struct poll_set *set);
bool port_up(void);
bool port_busy(void); /* so much is queued that exec output should wait */
void port_send(uint8_t type, uint32_t id, const void *a, size_t alen, const void *b, size_t blen);
bool port_drain(int64_t deadline_ms); /* until all is written */
void port_flush(void);
/* While held: looks for the IDENTITY of `fork_id`, or the failure of that fork; other frames stay queued. True when found; the caller
 * copies the payload before anything else is read. */
bool port_find_identity(uint32_t fork_id, struct frame *f);
void port_forget_input(void);

/* clients */
void clients_open(void);
void clients_prepare(struct poll_set *set);
void clients_run(const struct poll_set *set);
void clients_reply(uint32_t call, const char *text, size_t len);
/* Answers every pending call with `err interrupted`, save `except` (0: none). */
void clients_interrupt(uint32_t except);

/* exec */
void exec_open(void);
void exec_prepare(struct poll_set *set);
void exec_run(const struct poll_set *set);
void exec_frame(const struct frame *f);
/* The host no longer knows the sessions: their processes go on, their output is discarded. */
void exec_orphan(void);

/* hold */
void hold_open(void);
void hold(uint32_t fork_id);

/* identity */
void identity_open(void);
/* Applies an IDENTITY and tells the host. In a clone, `release` is called as soon as the new identity is in force. */
void identity_apply(uint32_t id, const uint8_t *text, size_t len, void (*release)(void));
/* False while unknown. */
bool identity_known(long *clusterid, long *vmid);
unsigned online_cpus(void);

#endif
