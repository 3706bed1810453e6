/*
 * Every call of sf.h, as a program of a user makes them. Prints "ok STEP" after each step; the first thing that is wrong ends it with a
 * message. A clone calls IC_EXIT only when all was right in it: otherwise it stays, and IC_JOIN with it.
 */
#include <sf.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void step(const char *name)
{
	printf("ok %s\n", name);
	fflush(stdout);
}

#define MUST(condition)                                                                       \
	do {                                                                                  \
		if (!(condition)) {                                                           \
			printf("line %d: %s; %s\n", __LINE__, #condition, sf_last_error());   \
			exit(1);                                                              \
		}                                                                             \
	} while (0)
#define FAILED(code) (!strncmp(sf_last_error(), code ": ", sizeof code + 1))

static int count_tickets(const sf_ticket_list *list, const char *ticket)
{
	int found = 0;
	for (; list; list = list->next)
		found += !strcmp(list->ticket, ticket);
	return found;
}

/* Where a ticket stands in the lists: 'u', 'o', or '-' in neither. */
static char place_of(const char *ticket)
{
	sf_result *all = LIST_TICKETS();
	MUST(all && !*sf_last_error());
	int unused = count_tickets(all->unused_tickets, ticket), outstanding = count_tickets(all->outstanding_tickets, ticket);
	FREE_SF_RES(all);
	MUST(unused + outstanding <= 1);
	return unused ? 'u' : outstanding ? 'o' : '-';
}

static void take(char *ticket, sf_result *granted, int wanted)
{
	MUST(granted && granted->rc.allowed_clones == wanted && strlen(granted->ticket) == SF_TICKET_SIZE);
	strcpy(ticket, granted->ticket);
	FREE_SF_RES(granted);
}

/* 0 in the master VM, else the clone's vmid. */
static int fork_all(char *ticket, int wanted)
{
	sf_result *res = CLONE_MASTER(ticket);
	MUST(res && res->rc.number_clones == wanted && !strcmp(res->ticket, ticket));
	int vmid = res->vmid;
	FREE_SF_RES(res);
	return vmid;
}

/* It may ask for tickets and use them, but not those of its master VM. */
static void be_clone_of(char *ticket, int vmid)
{
	int who;
	MUST(sf_whoami(NULL, &who) == 0 && who == vmid);
	MUST(!CLONE_MASTER(ticket) && FAILED("not-owner"));
	MUST(MERGE_MASTER(ticket) != 0 && FAILED("not-owner"));
	MUST(IC_KILL(ticket) != 0 && FAILED("not-owner"));
	IC_JOIN(ticket);
	MUST(FAILED("not-owner"));
	DISPOSE_TICKET(ticket);
	MUST(FAILED("not-owner"));
	MUST(place_of(ticket) == '-');
	MUST(SHUTDOWN_CLUSTER() != 0 && FAILED("not-master"));
	sf_result *own = REQUEST_CLONE_TICKET(1, 0, 0, 0);
	MUST(own);
	FREE_SF_RES(own);
	MERGE_ALL();
	MUST(!*sf_last_error());
}

static void be_joined(void)
{
	char ticket[SF_TICKET_SIZE + 1];
	take(ticket, REQUEST_CLONE_TICKET(2, 0, 2, 0), 2);
	int vmid = fork_all(ticket, 2);
	if (vmid != 0) {
		be_clone_of(ticket, vmid);
		IC_EXIT();
		exit(1);
	}
	step("CLONE_MASTER");
	MUST(place_of(ticket) == 'o');
	MUST(!CLONE_MASTER(ticket) && FAILED("ticket-used"));
	IC_JOIN(ticket);
	MUST(!*sf_last_error());
	MUST(place_of(ticket) == '-');
	step("IC_JOIN");
}

/* Forks clones that do nothing; true in the master VM. */
static void fork_idle(char *ticket)
{
	if (fork_all(ticket, 1) != 0)
		for (;;)
			pause();
	MUST(place_of(ticket) == 'o');
}

int main(void)
{
	char ticket[SF_TICKET_SIZE + 1], other[SF_TICKET_SIZE + 1];

	take(ticket, REQUEST_VM_TICKET(2), 2);
	MUST(place_of(ticket) == 'u');
	step("REQUEST_VM_TICKET");
	sf_result *info = READ_TICKET_INFO(ticket);
	MUST(info && !strcmp(info->ticket, ticket) && info->clone_list && info->clone_list->next && !info->clone_list->next->next);
	MUST(info->clone_list->vmid == 1 && info->clone_list->next->vmid == 2 && info->clone_list->processors == 1);
	FREE_SF_RES(info);
	step("READ_TICKET_INFO");
	DISPOSE_TICKET(ticket);
	MUST(!*sf_last_error() && place_of(ticket) == '-');
	MUST(!CLONE_MASTER(ticket) && FAILED("ticket-disposed"));
	step("DISPOSE_TICKET");

	be_joined();
	MUST(IC_EXIT() != 0 && FAILED("not-clone"));
	step("IC_EXIT");

	take(ticket, REQUEST_PROC_TICKET(1), 1);
	fork_idle(ticket);
	MUST(IC_KILL(ticket) == 0 && place_of(ticket) == '-');
	step("IC_KILL");

	take(ticket, REQUEST_VM_TICKET(1), 1);
	take(other, REQUEST_VM_TICKET(1), 1);
	fork_idle(ticket);
	fork_idle(other);
	MUST(SHUTDOWN_CLUSTER() != 0 && FAILED("tickets-outstanding"));
	MUST(MERGE_MASTER(ticket) == 0 && place_of(ticket) == '-' && place_of(other) == 'o');
	step("MERGE_MASTER");
	MERGE_ALL();
	MUST(!*sf_last_error() && place_of(other) == '-');
	step("MERGE_ALL");
	FREE_SF_RES(NULL);
	SHUTDOWN_CLUSTER();
	printf("the VM still runs after SHUTDOWN_CLUSTER; %s\n", sf_last_error());
	return 1;
}
