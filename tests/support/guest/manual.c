/*
 * Section 6 of the manual, sentence by sentence, in a master VM of two processors with room for three clones: "ok SENTENCE", or
 * "wrong SENTENCE: WHY". A clone calls IC_EXIT only if all is right in it.
 */
#include <sf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char ticket[SF_TICKET_SIZE + 1], other[SF_TICKET_SIZE + 1];
static char why[600];

/* Ends the sentence; in a clone it ends nothing: IC_JOIN waits, and the test says so. */
#define MUST(condition)                                                                              \
	do {                                                                                         \
		if (!(condition)) {                                                                  \
			snprintf(why, sizeof why, "line %d: %s; %s", __LINE__, #condition, sf_last_error()); \
			return;                                                                      \
		}                                                                                    \
	} while (0)
#define FAILED(code) (!strncmp(sf_last_error(), code ": ", sizeof code + 1))

static void idle(void)
{
	for (;;)
		pause();
}

static bool take(char *to, sf_result *granted, int wanted)
{
	bool right = granted && granted->rc.allowed_clones == wanted && strlen(granted->ticket) == SF_TICKET_SIZE;
	if (right)
		strcpy(to, granted->ticket);
	FREE_SF_RES(granted);
	return right;
}

/* Where a ticket stands: 'u', 'o', or '-'. */
static char place_of(const char *which)
{
	sf_result *all = LIST_TICKETS();
	char place = '-';
	for (sf_ticket_list *t = all ? all->unused_tickets : NULL; t; t = t->next)
		place = strcmp(t->ticket, which) ? place : 'u';
	for (sf_ticket_list *t = all ? all->outstanding_tickets : NULL; t; t = t->next)
		place = strcmp(t->ticket, which) ? place : 'o';
	FREE_SF_RES(all);
	return place;
}

/* The processors of a ticket's clones, in a string of digits, smallest first. */
static const char *processors_of(char *which)
{
	static char digits[16];
	sf_result *info = READ_TICKET_INFO(which);
	int count[10] = {0}, n = 0;
	for (sf_clone_info *i = info ? info->clone_list : NULL; i; i = i->next)
		count[i->processors % 10]++;
	for (int p = 0; p < 10; p++)
		while (count[p]-- > 0 && n < 15)
			digits[n++] = (char)('0' + p);
	digits[n] = 0;
	FREE_SF_RES(info);
	return digits;
}

/* Forks clones that do nothing; false if that fails. */
static bool fork_idle(char *with)
{
	sf_result *res = take(with, REQUEST_VM_TICKET(1), 1) ? CLONE_MASTER(with) : NULL;
	bool right = res && res->rc.number_clones == 1;
	if (res && res->vmid != 0)
		idle();
	FREE_SF_RES(res);
	return right;
}

static void request_clone_ticket(void)
{
	MUST(take(ticket, REQUEST_CLONE_TICKET(9, 0, 1, 0), 3));
	MUST(place_of(ticket) == 'u');
	sf_result *none = REQUEST_CLONE_TICKET(1, 0, 0, 0);
	MUST(none && none->rc.allowed_clones == 0 && !*none->ticket);
	FREE_SF_RES(none);
	DISPOSE_TICKET(ticket);
	MUST(take(ticket, REQUEST_CLONE_TICKET(3, 1, 3, 0), 3));
	MUST(!strcmp(processors_of(ticket), "12"));
	DISPOSE_TICKET(ticket);
}

static void request_error(void)
{
	MUST(!REQUEST_CLONE_TICKET(0, 0, 0, 0) && FAILED("bad-request"));
	MUST(!REQUEST_CLONE_TICKET(-1, 0, 0, 0) && FAILED("bad-request"));
	MUST(!REQUEST_CLONE_TICKET(1, 0, 2, 0) && FAILED("bad-request"));
	MUST(!REQUEST_VM_TICKET(1000) && FAILED("no-resources"));
}

static void vm_ticket(void)
{
	MUST(take(ticket, REQUEST_VM_TICKET(2), 2));
	MUST(!strcmp(processors_of(ticket), "22"));
	DISPOSE_TICKET(ticket);
}

static void proc_ticket(void)
{
	MUST(take(ticket, REQUEST_PROC_TICKET(3), 3));
	MUST(!strcmp(processors_of(ticket), "12"));
	DISPOSE_TICKET(ticket);
}

static void list_tickets(void)
{
	MUST(take(ticket, REQUEST_VM_TICKET(1), 1));
	MUST(fork_idle(other));
	MUST(place_of(ticket) == 'u' && place_of(other) == 'o');
	MERGE_ALL();
	MUST(place_of(ticket) == '-' && place_of(other) == '-');
}

static void read_ticket_info(void)
{
	MUST(take(ticket, REQUEST_VM_TICKET(1), 1));
	sf_result *info = READ_TICKET_INFO(ticket);
	MUST(info && !strcmp(info->ticket, ticket) && info->clone_list && !info->clone_list->next && info->clone_list->vmid > 0);
	MUST(info->clone_list->processors == 2);
	FREE_SF_RES(info);
	MUST(!READ_TICKET_INFO("nonsense") && FAILED("no-such-ticket"));
	MUST(!READ_TICKET_INFO(NULL) && FAILED("bad-request"));
	DISPOSE_TICKET(ticket);
}

static void dispose_ticket(void)
{
	MUST(take(ticket, REQUEST_VM_TICKET(3), 3));
	DISPOSE_TICKET(ticket);
	MUST(!*sf_last_error() && place_of(ticket) == '-');
	MUST(!CLONE_MASTER(ticket) && FAILED("ticket-disposed"));
	MUST(take(ticket, REQUEST_CLONE_TICKET(3, 0, 3, 0), 3));
	DISPOSE_TICKET(ticket);
	DISPOSE_TICKET(NULL);
	MUST(FAILED("bad-request"));
}

static void clone_master(void)
{
	MUST(take(ticket, REQUEST_VM_TICKET(2), 2));
	sf_result *res = CLONE_MASTER(ticket);
	MUST(res);
	if (res->vmid != 0) {
		char host[65], wanted[16];
		gethostname(host, sizeof host);
		snprintf(wanted, sizeof wanted, "-%d", res->vmid);
		if (res->rc.number_clones == 2 && strlen(host) > strlen(wanted) && !strcmp(host + strlen(host) - strlen(wanted), wanted))
			IC_EXIT();
		idle();
	}
	MUST(res->rc.number_clones == 2 && !strcmp(res->ticket, ticket));
	FREE_SF_RES(res);
	IC_JOIN(ticket);
	MUST(!*sf_last_error());
}

static void clone_master_error(void)
{
	MUST(!CLONE_MASTER(NULL) && FAILED("bad-request"));
	MUST(!CLONE_MASTER("") && FAILED("bad-request"));
	MUST(!CLONE_MASTER("two words") && FAILED("bad-request"));
	MUST(!CLONE_MASTER("0123456789012345678901234567890123456789") && FAILED("bad-request"));
	MUST(!CLONE_MASTER("nonsense") && FAILED("no-such-ticket"));
	MUST(!sf_clone_master("nonsense", 7) && FAILED("bad-request"));
}

static void merge_master(void)
{
	MUST(fork_idle(ticket) && fork_idle(other));
	MUST(MERGE_MASTER(ticket) == 0 && place_of(ticket) == '-' && place_of(other) == 'o');
	MUST(MERGE_MASTER("nonsense") != 0 && FAILED("no-such-ticket"));
	MUST(MERGE_MASTER(other) == 0);
}

static void merge_all(void)
{
	MUST(fork_idle(ticket) && fork_idle(other));
	MERGE_ALL();
	MUST(!*sf_last_error() && place_of(ticket) == '-' && place_of(other) == '-');
}

static void ic_kill(void)
{
	MUST(fork_idle(ticket));
	MUST(IC_KILL(ticket) == 0 && place_of(ticket) == '-');
	MUST(IC_KILL("nonsense") != 0 && FAILED("no-such-ticket"));
}

static void ic_join(void)
{
	time_t begin = time(NULL);
	MUST(take(ticket, REQUEST_VM_TICKET(2), 2));
	sf_result *res = CLONE_MASTER(ticket);
	MUST(res);
	if (res->vmid != 0) {
		sleep(res->vmid % 2 ? 3 : 0);
		IC_EXIT();
		idle();
	}
	FREE_SF_RES(res);
	IC_JOIN(ticket);
	MUST(!*sf_last_error() && time(NULL) - begin >= 2 && place_of(ticket) == '-');
}

static void ic_exit(void) { MUST(IC_EXIT() != 0 && FAILED("not-clone")); }

static void shutdown_refused(void)
{
	MUST(fork_idle(ticket));
	MUST(SHUTDOWN_CLUSTER() != 0 && FAILED("tickets-outstanding"));
	MUST(MERGE_MASTER(ticket) == 0);
}

static const struct {
	const char *sentence;
	void (*check)(void);
} sentences[] = {
	{"REQUEST_CLONE_TICKET gives the number of allocations actually received, and the ticket", request_clone_ticket},
	{"REQUEST_CLONE_TICKET returns NULL on error", request_error},
	{"REQUEST_VM_TICKET requests n VM clones", vm_ticket},
	{"REQUEST_PROC_TICKET requests n processor clones", proc_ticket},
	{"LIST_TICKETS shows all tickets in flight", list_tickets},
	{"READ_TICKET_INFO gives (vmid, processors) of each clone, and the ticket", read_ticket_info},
	{"DISPOSE_TICKET relinquishes the resources, and the ticket cannot be used afterwards", dispose_ticket},
	{"CLONE_MASTER gives the number of clones started, and the vmid, different in each", clone_master},
	{"CLONE_MASTER returns NULL on error", clone_master_error},
	{"MERGE_MASTER returns 0 on success and non-zero on error", merge_master},
	{"MERGE_ALL merges all outstanding tickets", merge_all},
	{"IC_KILL returns 0 on success and non-zero on error", ic_kill},
	{"IC_JOIN makes the master wait on slaves until they have exited", ic_join},
	{"IC_EXIT returns a non-zero value on error", ic_exit},
	{"SHUTDOWN_CLUSTER is only permitted if there are no active clones", shutdown_refused},
};

int main(void)
{
	FREE_SF_RES(NULL);
	for (size_t i = 0; i < sizeof sentences / sizeof *sentences; i++) {
		why[0] = 0;
		sentences[i].check();
		printf(why[0] ? "wrong %s: %s\n" : "ok %s\n", sentences[i].sentence, why);
		fflush(stdout);
		if (why[0])
			MERGE_ALL();
	}
	puts("end");
	fflush(stdout);
	getchar();
	SHUTDOWN_CLUSTER();
	return 1;
}
