/*
 * The SnowFlock C interface for programs inside a VM. Source-compatible with SnowFlock 0.2c, manual section 6.
 * Link with -lsf.
 */
#ifndef SF_H
#define SF_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SF_TICKET_SIZE 36

typedef struct sf_ticket_list {
	struct sf_ticket_list *next;
	char ticket[SF_TICKET_SIZE + 1];
} sf_ticket_list;

typedef struct sf_clone_info {
	struct sf_clone_info *next;
	int vmid;
	int processors;
} sf_clone_info;

typedef struct sf_result {
	union {
		int allowed_clones; /* REQUEST_*_TICKET */
		int number_clones;  /* CLONE_MASTER */
	} rc;
	int vmid; /* CLONE_MASTER: of the VM in which it returns; in the one that called it the same as before */
	char ticket[SF_TICKET_SIZE + 1];
	struct sf_clone_info *clone_list;           /* READ_TICKET_INFO */
	struct sf_ticket_list *unused_tickets;      /* LIST_TICKETS: requested, not yet cloned */
	struct sf_ticket_list *outstanding_tickets; /* LIST_TICKETS: cloned, not yet joined or merged */
} sf_result;

/*
 * nclones clones, or with procs non-zero that many processors spread over clones. min >= 0: between min and nclones will do.
 * block 0: return at once with what there is, maybe nothing (allowed_clones 0, empty ticket). NULL on error.
 */
extern struct sf_result *REQUEST_CLONE_TICKET(int nclones, int procs, int min, int block);
extern struct sf_result *REQUEST_VM_TICKET(int nclones);
extern struct sf_result *REQUEST_PROC_TICKET(int nclones);
extern struct sf_result *LIST_TICKETS(void);
extern struct sf_result *READ_TICKET_INFO(char *ticket);
/* Gives an unused ticket back. */
extern void DISPOSE_TICKET(char *ticket);
/*
 * Forks this VM, a master VM or a clone. Returns in it and in every clone; NULL on error. In the VM that called it vmid is what it was
 * before (sf_whoami), 0 in a master VM; in its clones it is another one.
 */
extern struct sf_result *CLONE_MASTER(char *ticket);

/*
 * What becomes in a clone of the random generators in its program: SF_SEED_FRESH, as CLONE_MASTER: those of the C library (rand, random,
 * drand48) are seeded anew from the kernel's; SF_SEED_SAME: they go on alike in all VMs. The kernel's own is never the same in two VMs.
 */
#define SF_SEED_FRESH 0
#define SF_SEED_SAME 1
extern struct sf_result *sf_clone_master(const char *ticket, int seed);
/* Seeds the generators of the C library from the kernel's. 0 on success. */
extern int sf_reseed(void);

/* Destroys the clones of a ticket, of all tickets if NULL or empty. 0 on success. */
extern int MERGE_MASTER(char *ticket);
extern void MERGE_ALL(void);
extern int IC_KILL(char *ticket);
/* Waits until all clones of the ticket have called IC_EXIT. */
extern void IC_JOIN(char *ticket);
/* Destroys the calling clone: does not return on success. */
extern int IC_EXIT(void);
/* Shuts the master VM down, if no ticket is outstanding: does not return on success. */
extern int SHUTDOWN_CLUSTER(void);
extern void FREE_SF_RES(struct sf_result *res);

/*
 * ---- beyond 0.2c: clones fork ----
 *
 * Every VM of a cluster may request tickets and use its own; the clones of a VM end with it. This tells which VM it is; either may be NULL.
 * 0 on success.
 */
extern int sf_whoami(int *clusterid, int *vmid);

/*
 * ---- beyond 0.2c: reset ----
 *
 * Puts a clone back to the instant of its fork: CLONE_MASTER returns in it once more, with the same vmid, and what it has done since is gone
 * from its memory and its disk. A VM may reset the clones that it has forked and, when it is a clone, itself: then this does not return.
 * 0 on success.
 */
extern int sf_reset(int vmid);

/*
 * ---- beyond 0.2c: clones return results ----
 *
 * IC_EXIT with a status and, if len > 0, so many bytes of result. On success it does not return; on error it returns non-zero, the clone
 * runs on, and may exit in another way ("result-too-large": with less).
 */
extern int sf_exit(int status, const void *data, size_t len);
/* The same with the contents of a file; of anything that can be read to its end. */
extern int sf_exit_file(int status, const char *path);

/* How a clone ended. */
typedef enum sf_how {
	SF_EXITED = 0, /* by IC_EXIT or sf_exit */
	SF_ENDED = 1,  /* by an sf_join that had enough, or its guest powered itself off */
	SF_LOST = 2    /* it crashed, could not be started, its host is gone, ... */
} sf_how;

typedef struct sf_outcome {
	struct sf_outcome *next;
	int vmid;
	sf_how how;
	int status;   /* of sf_exit; -1 unless exited */
	char *reason; /* for people */
	void *data;   /* its result, with a NUL byte behind it */
	size_t size;  /* without that */
} sf_outcome;

/* When a join has enough; the clones that still run then are ended. A field that is 0 means: no such limit. */
typedef struct sf_join_options {
	int count;             /* so many clones have exited */
	double deadline;       /* seconds since the call */
	double budget_seconds; /* that the clones have run together since the fork */
	size_t budget_bytes;   /* of results together */
} sf_join_options;

/*
 * IC_JOIN that tells how each clone ended and what it returned, by ascending vmid; options may be NULL. The ticket is merged then. NULL on
 * error; unless that is "ticket-used" (joined or merged before), nothing is lost and the join may be tried again.
 */
extern sf_outcome *sf_join(const char *ticket, const sf_join_options *options);
extern void sf_free_outcomes(sf_outcome *outcomes);

/*
 * "code: message" of this thread's last call if that failed, "" if it succeeded; also tells whether a call that returns nothing worked.
 * Valid until the thread's next call.
 */
extern const char *sf_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
