/*
 * sfresult: clones that return results, as it is told on stdin, one command a line; answers one line each. For measuring.
 *
 *   fork N BYTES   "ticket T", when the clones run; each exits at once with so many bytes
 *   join T         "joined N BYTES MS": how many exited with how much together, and how long the join took
 *
 * Errors: "error MESSAGE".
 */
#include "probe.h"
#include "../lib/sf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void fork_all(int count, size_t bytes)
{
	void *data = malloc(bytes + 1);
	struct sf_result *ticket = REQUEST_VM_TICKET(count), *res = NULL;
	if (!data || !ticket) {
		printf("error %s\n", sf_last_error());
		exit(1);
	}
	memset(data, 7, bytes);
	res = CLONE_MASTER(ticket->ticket);
	if (!res)
		printf("error %s\n", sf_last_error());
	else if (res->vmid == 0)
		printf("ticket %s\n", ticket->ticket);
	else
		sf_exit(0, data, bytes);
	FREE_SF_RES(res);
	FREE_SF_RES(ticket);
	free(data);
}

static void join(const char *ticket)
{
	double start = now_ms();
	sf_outcome *all = sf_join(ticket, NULL);
	double took = now_ms() - start;
	int exited = 0;
	size_t bytes = 0;
	if (!all) {
		printf("error %s\n", sf_last_error());
		return;
	}
	for (sf_outcome *o = all; o; o = o->next) {
		exited += o->how == SF_EXITED;
		bytes += o->size;
	}
	printf("joined %d %zu %.3f\n", exited, bytes, took);
	sf_free_outcomes(all);
}

int sfresult(int argc, char **argv)
{
	char line[256], ticket[64];
	int count;
	size_t bytes;

	(void)argc, (void)argv;
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		if (sscanf(line, "fork %d %zu", &count, &bytes) == 2)
			fork_all(count, bytes);
		else if (sscanf(line, "join %63s", ticket) == 1)
			join(ticket);
		else
			printf("error unknown command\n");
	}
	return 0;
}
