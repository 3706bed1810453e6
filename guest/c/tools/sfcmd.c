/*
 * The commands of a VM in one program, told apart by its name: those of the manual (section 4) here, sfexit and sfjoin in results.c.
 */
#include "command.h"
#include "sf.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int usage_error(const struct command *self, const char *problem)
{
	fprintf(stderr, "%s: %s\nusage: %s\n", self->name, problem, self->help);
	return USAGE_STATUS;
}

int failed(const struct command *self)
{
	fprintf(stderr, "%s: %s\n", self->name, sf_last_error());
	return 1;
}

/* A positive number, or 0 with a message on stderr. */
static int parse_count(const struct command *self, const char *text)
{
	char *end, problem[128];
	errno = 0;
	long n = strtol(text, &end, 10);
	if (errno == 0 && end != text && *end == 0 && n >= 1 && n <= INT_MAX)
		return (int)n;
	snprintf(problem, sizeof problem, "NCLONES must be a whole number of 1 or more, not '%.40s'", text);
	usage_error(self, problem);
	return 0;
}

/* Takes what can be had at once; the caller frees. */
static struct sf_result *request(int nclones)
{
	struct sf_result *res = REQUEST_CLONE_TICKET(nclones, 0, 0, 0);
	if (!res)
		return NULL;
	printf("Requested %d clones, %d allocations received.\n", nclones, res->rc.allowed_clones);
	if (res->rc.allowed_clones > 0)
		printf("Ticket is %s\n", res->ticket);
	fflush(stdout);
	return res;
}

static int clone_with(const struct command *self, char *ticket)
{
	int before;
	fflush(stdout); /* or every clone would print it again */
	if (sf_whoami(NULL, &before) != 0)
		return failed(self);
	struct sf_result *res = CLONE_MASTER(ticket);
	if (!res)
		return failed(self);
	if (res->vmid == 0)
		printf("I am the master with %d clones (original VM).\n", res->rc.number_clones);
	else if (res->vmid == before)
		printf("I am clone %d with %d clones (original VM).\n", res->vmid, res->rc.number_clones);
	else
		printf("I am clone %d (cloned VM).\n", res->vmid);
	FREE_SF_RES(res);
	return 0;
}

static int none_granted(const struct command *self)
{
	fprintf(stderr, "%s: no clones can be allocated now: the hosts' processors or memory are taken\n", self->name);
	return 1;
}

static int sfdotix(const struct command *self, int count, char **args)
{
	(void)count;
	int n = parse_count(self, args[0]);
	if (!n)
		return USAGE_STATUS;
	struct sf_result *res = request(n);
	if (!res)
		return failed(self);
	int status = res->rc.allowed_clones > 0 ? 0 : none_granted(self);
	FREE_SF_RES(res);
	return status;
}

static int sfdoclone(const struct command *self, int count, char **args)
{
	(void)count;
	if (!*args[0])
		return usage_error(self, "TICKET is empty");
	return clone_with(self, args[0]);
}

static int sfclone(const struct command *self, int count, char **args)
{
	(void)count;
	int n = parse_count(self, args[0]);
	if (!n)
		return USAGE_STATUS;
	struct sf_result *res = request(n);
	if (!res)
		return failed(self);
	int status = res->rc.allowed_clones > 0 ? clone_with(self, res->ticket) : none_granted(self);
	FREE_SF_RES(res);
	return status;
}

static int sfmerge(const struct command *self, int count, char **args)
{
	(void)count;
	puts("Attempting to merge virtual cluster...");
	fflush(stdout);
	if (MERGE_MASTER(args[0]) != 0)
		return failed(self);
	if (*args[0])
		printf("Successful merge for ticket %s\n", args[0]);
	else
		puts("Successful merge for all tickets");
	return 0;
}

static int sfreset(const struct command *self, int count, char **args)
{
	(void)count;
	char *end;
	errno = 0;
	long vmid = strtol(args[0], &end, 10);
	if (errno || end == args[0] || *end || vmid < 0 || vmid > INT_MAX)
		return usage_error(self, "VMID must be a whole number");
	return sf_reset((int)vmid) == 0 ? 0 : failed(self);
}

static int sfshutdown(const struct command *self, int count, char **args)
{
	(void)count, (void)args;
	puts("Attempting to shut down virtual cluster...");
	fflush(stdout);
	return SHUTDOWN_CLUSTER() == 0 ? 0 : failed(self);
}

static const struct command commands[] = {
	{"sfdotix", 1, 1, "sfdotix NCLONES\nReserves resources for NCLONES clones of this VM and prints the ticket.", sfdotix},
	{"sfdoclone", 1, 1, "sfdoclone TICKET\nClones this VM with a ticket of sfdotix; returns in this VM and in every clone.", sfdoclone},
	{"sfclone", 1, 1, "sfclone NCLONES\nReserves resources and clones this VM; returns in this VM and in every clone.", sfclone},
	{"sfmerge", 1, 1, "sfmerge TICKET\nDestroys the clones made with TICKET, or all clones if TICKET is ''.", sfmerge},
	{"sfreset", 1, 1, "sfreset VMID\nPuts a clone of this VM, or this clone, back to the instant of its fork.", sfreset},
	{"sfexit", 0, 2, SFEXIT_HELP, sfexit},
	{"sfjoin", 1, JOIN_ARGS_MAX, SFJOIN_HELP, sfjoin},
	{"sfshutdown", 0, 0, "sfshutdown\nShuts this master VM down, once all its clones are merged.", sfshutdown},
};

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
		const struct command *c = &commands[i];
		if (strcmp(c->name, name))
			continue;
		if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) {
			printf("usage: %s\n", c->help);
			return 0;
		}
		if (argc - 1 < c->least || argc - 1 > c->most)
			return usage_error(c, argc - 1 < c->least ? "an argument is missing" : "too many arguments");
		int status = c->run(c, argc - 1, argv + 1);
		return fflush(stdout) == 0 ? status : 1;
	}
	fprintf(stderr, "%s: not a SnowFlock command; call it by one of the names", name);
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		fprintf(stderr, " %s", commands[i].name);
	fputc('\n', stderr);
	return USAGE_STATUS;
}
