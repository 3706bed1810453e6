/*
 * sfagent: the parts of the agent and what each owns.
 *
 *   main      options, the poll loop
 *   port      the link to sfld: input and output queues, loss and return of the link
 *   clients   connections on the agent socket and the calls they wait for
 *   transfer  the bytes that follow a call or a reply
 *   again     calls that are repeated when the host was away
 *   exec      commands run for the host
 *   hold      the CPUs, from HOLD to IDENTITY, and how many there are
 *   identity  who this VM is: generator, clock, name
 *   network   its interface and address
 *   connections  TCP connections that end in a clone
 *   settle    what a clone does before its caller goes on: hooks, CPUs that are not its own
 *   freezer   stops everybody else meanwhile
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
#include <sys/types.h>

struct options {
	const char *port;   /* NULL: look for the virtio port named "snowflock" */
	const char *socket; /* the agent socket */
	const char *hooks;  /* directory of the hooks of clones */
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
/* Bytes of a reply, and the host's grant for bytes of a call. */
void clients_data(const struct frame *f);
void clients_credit(const struct frame *f);
/* Answers every pending call with `err interrupted`, save `except` (0: none). */
void clients_interrupt(uint32_t except);
/* Whether a clone_master asked that generators in its program stay as they are. */
bool clients_same_seed(uint32_t call);
/* The link of the pending calls is lost; then: there is a new one, and calls that cannot be repeated are answered `err interrupted`; then: the
 * host has said on it who this VM is, and the others are asked again. */
void clients_link_lost(void);
void clients_link_new(void);
void clients_ask_again(void);

/* exec */
void exec_open(void);
void exec_prepare(struct poll_set *set);
void exec_run(const struct poll_set *set);
void exec_frame(const struct frame *f);
/* The host no longer knows the sessions: their processes go on, their output is discarded. */
void exec_orphan(void);
/* In a child: the environment, priority and signals that a program expects. */
void exec_child_defaults(void);

/* hold */
void hold_open(void);
void hold(uint32_t fork_id);
/* Whether another number of CPUs than `wanted` (0: as it is) was online at the last hold; and puts as many online. */
bool cpus_differ(long wanted);
void cpus_set(long wanted);

/* identity */
void identity_open(void);
/* Applies an IDENTITY and tells the host. In a clone, `release` is called as soon as the new identity is in force. */
void identity_apply(uint32_t id, const uint8_t *text, size_t len, void (*release)(void));
/* False while unknown. */
bool identity_known(long *clusterid, long *vmid);
unsigned online_cpus(void);
/* Tells the caller of the fork that made this clone. */
void identity_answer(uint32_t id);

/* connections */
void connections_open(void);
void connections_list(void);
void connections_reset(void);

/* settle */
struct identity;
void settle_scan(void);
/* In a clone, before its CPUs are let go: true if there is something to do, which settle_run then starts. */
bool settle_begin(const struct identity *id);
void settle_run(uint32_t fork_id);
bool settle_busy(void);
void settle_child(pid_t pid, int status);
void settle_prepare(struct poll_set *set);
void settle_poll(const struct poll_set *set);

/* freezer */
void freezer_open(void);
void freezer_set(bool frozen);
/* fork(); the child is none of those that are never frozen, and may only prepare and exec. */
pid_t freezer_fork_rest(void);
/* What hooks have left running is one of the rest. */
void freezer_release_hooks(void);

#endif
