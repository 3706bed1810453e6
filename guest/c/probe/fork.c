/*
 * sffork: forks this VM as it is told on stdin, one command a line; answers one line each. For measuring: the program is warm, and the
 * copy in a clone answers with its very first call.
 *
 *   ticket N     "ticket T ALLOWED"
 *   clone T      in the VM itself "master N"; in a clone: asks for the ticket's clones (its first answer), then sleeps for ever
 *   merge T      "merged"
 *
 * Errors: "error MESSAGE".
 */
#include "probe.h"
#include "../lib/sf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int me; /* vmid */

static void print_error(void)
{
	printf("error %s\n", sf_last_error());
}

static void take_ticket(const char *count)
{
	struct sf_result *r = REQUEST_CLONE_TICKET((int)number_arg("sffork", count, 1, 100000), 0, -1, 0);
	if (!r)
		return print_error();
	printf("ticket %s %d\n", r->ticket, r->rc.allowed_clones);
	FREE_SF_RES(r);
}

static void clone_ticket(char *ticket)
{
	struct sf_result *r = CLONE_MASTER(ticket);
	if (!r)
		return print_error();
	if (r->vmid != me) {
		FREE_SF_RES(READ_TICKET_INFO(ticket));
		for (;;)
			pause();
	}
	printf("master %d\n", r->rc.number_clones);
	FREE_SF_RES(r);
}

int sffork(int argc, char **argv)
{
	char line[256];

	(void)argc, (void)argv;
	if (sf_whoami(NULL, &me) != 0)
		print_error();
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (!strncmp(line, "ticket ", 7))
			take_ticket(line + 7);
		else if (!strncmp(line, "clone ", 6))
			clone_ticket(line + 6);
		else if (strncmp(line, "merge ", 6))
			printf("error unknown command\n");
		else if (MERGE_MASTER(line + 6) != 0)
			print_error();
		else
			printf("merged\n");
	}
	return 0;
}
