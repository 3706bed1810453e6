/*
 * The SnowFlock C interface for programs inside a VM. Source-compatible with SnowFlock 0.2c, manual section 6.
 * Link with -lsf.
 */
#ifndef SF_H
#define SF_H

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
	int vmid; /* CLONE_MASTER: 0 in the master VM */
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
/* Forks this VM. Returns in the master VM and in every clone; NULL on error. */
extern struct sf_result *CLONE_MASTER(char *ticket);
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
 * "code: message" of this thread's last call if that failed, "" if it succeeded; also tells whether a call that returns nothing worked.
 * Valid until the thread's next call.
 */
extern const char *sf_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
