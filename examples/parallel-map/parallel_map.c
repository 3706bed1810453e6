/*
 * A parallel map over clones of this VM, in C: counts the primes below LIMIT.
 *
 *     gcc -O2 -o parallel_map parallel_map.c -lsf -lm
 *     ./parallel_map CLONES LIMIT
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <sf.h>

/* What clone `turn` of `clones` does: every clones-th number. */
static long share(int turn, int clones, long limit)
{
	long count = 0;
	for (long n = 2 + turn; n < limit; n += clones) {
		long d = 2;
		while (d * d <= n && n % d)
			d++;
		count += d * d > n;
	}
	return count;
}

static int failed(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, sf_last_error());
	return 1;
}

/* The turn of a clone: its place in the ticket's list, which all copies of this program have. */
static int turn_of(int vmid, struct sf_clone_info *clones)
{
	int turn = 0;
	for (; clones && clones->vmid != vmid; clones = clones->next)
		turn++;
	return turn;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return fprintf(stderr, "usage: parallel_map CLONES LIMIT\n"), 2;
	long limit = atol(argv[2]);
	struct sf_result *ticket = REQUEST_CLONE_TICKET(atoi(argv[1]), 0, 1, 1);
	if (!ticket)
		return failed("request");
	struct sf_result *info = READ_TICKET_INFO(ticket->ticket);
	if (!info)
		return failed("ticket");
	int clones = 0;
	for (struct sf_clone_info *each = info->clone_list; each; each = each->next)
		clones++;
	struct sf_result *forked = CLONE_MASTER(ticket->ticket); /* returns here, and in every clone */
	if (!forked)
		return failed("fork");
	if (forked->vmid != 0) {
		long count = share(turn_of(forked->vmid, info->clone_list), clones, limit);
		sf_exit(0, &count, sizeof count);
		return failed("exit");
	}
	sf_outcome *outcomes = sf_join(ticket->ticket, NULL);
	if (!outcomes)
		return failed("join");
	long primes = 0, count;
	for (sf_outcome *each = outcomes; each; each = each->next) {
		if (each->how == SF_EXITED && each->size == sizeof count)
			memcpy(&count, each->data, sizeof count);
		else /* it was lost: its share is done here */
			count = share(turn_of(each->vmid, info->clone_list), clones, limit);
		primes += count;
	}
	printf("{\"primes\": %ld, \"clones\": %d}\n", primes, clones);
	sf_free_outcomes(outcomes);
	FREE_SF_RES(forked);
	FREE_SF_RES(info);
	FREE_SF_RES(ticket);
	return 0;
}
