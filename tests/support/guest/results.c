/*
 * Clones that return something, with every call of sf.h for it, as the test says:
 *
 *   results fork N HOW...    forks N clones; the K-th does what the K-th HOW says (the last for all others); prints "ticket T"
 *                              exit:STATUS:BYTES     sf_exit with so many bytes, each the vmid
 *                              file:STATUS:PATH      sf_exit_file
 *                              wait:STATUS:BYTES     as exit, once there is a file /run/go
 *                              off                   powers itself off
 *                              stay                  computes for ever
 *   results join T [COUNT [DEADLINE [SECONDS [BYTES]]]]
 *                            prints a line for each: VMID HOW STATUS SIZE right|wrong REASON
 *   results wrong            every wrong argument; prints the errors
 *   results many T           four threads join at once; each prints how many outcomes it got, or the error
 */
#include <pthread.h>
#include <sf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

#define JOINERS 4

static void stay(const char *why)
{
	FILE *f = fopen("/run/results", "w");
	if (f) {
		fprintf(f, "%s\n", why);
		fclose(f);
	}
	for (;;)
		pause();
}

static void act(int vmid, const char *how)
{
	int status;
	size_t size;
	char path[128];
	if (sscanf(how, "exit:%d:%zu", &status, &size) == 2 || sscanf(how, "wait:%d:%zu", &status, &size) == 2) {
		while (*how == 'w' && access("/run/go", F_OK) != 0)
			usleep(20000);
		char *data = malloc(size + 1);
		memset(data, vmid, size);
		sf_exit(status, data, size);
		stay(sf_last_error());
	} else if (sscanf(how, "file:%d:%127s", &status, path) == 2) {
		sf_exit_file(status, path);
		stay(sf_last_error());
	} else if (!strcmp(how, "off")) {
		reboot(RB_POWER_OFF);
	}
	stay("staying");
}

static int fork_all(int count, int hows, char **how)
{
	sf_result *ticket = REQUEST_VM_TICKET(count);
	int first = 0;
	sf_result *info = ticket ? READ_TICKET_INFO(ticket->ticket) : NULL;
	if (info && info->clone_list)
		first = info->clone_list->vmid;
	sf_result *res = ticket ? CLONE_MASTER(ticket->ticket) : NULL;
	if (!res || !first) {
		printf("error %s\n", sf_last_error());
		return 1;
	}
	if (res->vmid != 0) {
		int k = res->vmid - first;
		act(res->vmid, how[k < hows ? k : hows - 1]);
	}
	printf("ticket %s\n", ticket->ticket);
	return 0;
}

static const char *right(const sf_outcome *o)
{
	const char *data = o->data;
	for (size_t i = 0; i < o->size; i++)
		if (data[i] != o->vmid)
			return "wrong";
	return data[o->size] == 0 ? "right" : "wrong";
}

static int join(int count, char **args)
{
	static const char *const names[] = {"exited", "ended", "lost"};
	sf_join_options options = {
		.count = count > 1 ? atoi(args[1]) : 0,
		.deadline = count > 2 ? atof(args[2]) : 0,
		.budget_seconds = count > 3 ? atof(args[3]) : 0,
		.budget_bytes = count > 4 ? strtoul(args[4], NULL, 10) : 0,
	};
	sf_outcome *all = sf_join(args[0], count > 1 ? &options : NULL);
	if (!all) {
		printf("error %s\n", sf_last_error());
		return 1;
	}
	for (sf_outcome *o = all; o; o = o->next)
		printf("%d %s %d %zu %s %s\n", o->vmid, names[o->how], o->status, o->size, right(o), o->reason);
	sf_free_outcomes(all);
	return 0;
}

static void refused(const char *what, int failed)
{
	printf("%s: %s\n", what, failed ? sf_last_error() : "no error");
}

static int wrong(void)
{
	char ticket[] = "00000000-0000-4000-8000-000000000000";
	sf_join_options o;
	refused("exit in the master VM", sf_exit(0, NULL, 0));
	refused("exit with a result in the master VM", sf_exit(0, ticket, sizeof ticket));
	refused("exit without data", sf_exit(0, NULL, 1));
	refused("exit with too much", sf_exit(0, ticket, (size_t)-1));
	refused("no such file", sf_exit_file(0, "/no/such"));
	refused("a directory", sf_exit_file(0, "/"));
	refused("no file", sf_exit_file(0, NULL));
	refused("no ticket", !sf_join(NULL, NULL));
	refused("an empty ticket", !sf_join("", NULL));
	refused("two words", !sf_join("a b", NULL));
	refused("a line end", !sf_join("a\nwhoami", NULL));
	refused("another ticket", !sf_join(ticket, NULL));
	o = (sf_join_options){.count = -1};
	refused("count -1", !sf_join(ticket, &o));
	o = (sf_join_options){.deadline = -0.5};
	refused("deadline -0.5", !sf_join(ticket, &o));
	o = (sf_join_options){.deadline = 0.0 / 0.0};
	refused("deadline NaN", !sf_join(ticket, &o));
	o = (sf_join_options){.budget_seconds = 1e30};
	refused("budget_seconds 1e30", !sf_join(ticket, &o));
	o = (sf_join_options){.budget_bytes = (size_t)-1};
	refused("budget_bytes of 2^64", !sf_join(ticket, &o));
	sf_free_outcomes(NULL);
	return 0;
}

static char text[JOINERS][256];

static void *joiner(void *ticket)
{
	static _Atomic int next;
	int me = next++, count = 0;
	sf_outcome *all = sf_join(ticket, NULL);
	for (sf_outcome *o = all; o; o = o->next)
		count += !strcmp(right(o), "right");
	if (all)
		snprintf(text[me], sizeof text[me], "%d right", count);
	else
		snprintf(text[me], sizeof text[me], "%.20s", sf_last_error());
	sf_free_outcomes(all);
	return NULL;
}

static int many(char *ticket)
{
	pthread_t threads[JOINERS];
	for (int i = 0; i < JOINERS; i++)
		pthread_create(&threads[i], NULL, joiner, ticket);
	for (int i = 0; i < JOINERS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < JOINERS; i++)
		puts(text[i]);
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "fork") && argc > 3)
		return fork_all(atoi(argv[2]), argc - 3, argv + 3);
	if (!strcmp(what, "join") && argc > 2)
		return join(argc - 2, argv + 2);
	if (!strcmp(what, "wrong"))
		return wrong();
	if (!strcmp(what, "many") && argc == 3)
		return many(argv[2]);
	return 2;
}
