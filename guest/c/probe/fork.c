/*
 * sffork [MIB]: forks this VM as it is told on stdin, one command a line; answers one line each. For measuring: the program is warm, and
 * the copy in a clone answers with its very first call. With MIB it fills that much memory first and prints "filled"; a clone then reads
 * and checks all of it before it answers, and one whose memory is wrong never does.
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

/* For the pattern; any would do. */
#define SEED 77

static int me; /* vmid */
static uint64_t *area;
static size_t pages;

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
		if (pattern_check(area, pages, SEED) == 0)
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

	if (argc > 1) {
		pages = (size_t)number_arg("sffork", argv[1], 1, 1 << 20) * 256;
		area = map_pages(pages);
		pattern_fill(area, pages, SEED);
	}
	if (sf_whoami(NULL, &me) != 0)
		print_error();
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (area)
		puts("filled");
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
