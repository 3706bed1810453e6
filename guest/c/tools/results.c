/* sfexit and sfjoin: clones that return results, for shell scripts. */
#include "command.h"
#include "sf.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* It worked, and not every clone did. */
#define UNWELL_STATUS 3

int sfexit(const struct command *self, int count, char **args)
{
	char *end;
	errno = 0;
	long status = count > 0 ? strtol(args[0], &end, 10) : 0;
	if (count > 0 && (errno || end == args[0] || *end || status < INT_MIN || status > INT_MAX))
		return usage_error(self, "STATUS must be a whole number");
	if (count < 2)
		sf_exit((int)status, NULL, 0);
	else
		sf_exit_file((int)status, strcmp(args[1], "-") ? args[1] : "/proc/self/fd/0");
	return failed(self);
}

struct join {
	sf_join_options options;
	const char *directory, *ticket;
};

/* A number above 0, whole or of seconds. */
static bool parse_limit(const char *text, bool whole, double *value)
{
	char *end;
	errno = 0;
	*value = whole ? (double)strtoll(text, &end, 10) : strtod(text, &end);
	return errno == 0 && end != text && *end == 0 && *value > 0 && (!whole || *value < 1e15);
}

/* NULL, or what is wrong. */
static const char *parse_join(struct join *join, int count, char **args)
{
	static char problem[128];
	double value;
	for (int i = 0; i < count; i++) {
		const char *name = args[i], *text = i + 1 < count ? args[i + 1] : NULL;
		if (strncmp(name, "--", 2)) {
			if (join->ticket)
				return "too many arguments";
			join->ticket = name;
			continue;
		}
		bool known = !strcmp(name, "--count") || !strcmp(name, "--deadline") || !strcmp(name, "--budget-seconds") ||
			     !strcmp(name, "--budget-bytes") || !strcmp(name, "--results");
		bool whole = !strcmp(name, "--count") || !strcmp(name, "--budget-bytes");
		if (!known || !text) {
			snprintf(problem, sizeof problem, known ? "%.40s needs a value" : "unknown option %.40s", name);
			return problem;
		}
		i++;
		if (!strcmp(name, "--results")) {
			join->directory = text;
			continue;
		}
		if (!parse_limit(text, whole, &value) || (!strcmp(name, "--count") && value > INT_MAX)) {
			snprintf(problem, sizeof problem, "%.40s must be a %snumber above 0, not '%.40s'", name,
				 whole ? "whole " : "", text);
			return problem;
		}
		if (!strcmp(name, "--count"))
			join->options.count = (int)value;
		else if (!strcmp(name, "--deadline"))
			join->options.deadline = value;
		else if (!strcmp(name, "--budget-seconds"))
			join->options.budget_seconds = value;
		else
			join->options.budget_bytes = (size_t)value;
	}
	return join->ticket && *join->ticket ? NULL : "TICKET is missing";
}

/* False with a message on stderr. */
static bool write_result(const struct command *self, const char *directory, const sf_outcome *o)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/%d", directory, o->vmid);
	FILE *file = fopen(path, "w");
	bool ok = file && fwrite(o->data, 1, o->size, file) == o->size;
	if (file && fclose(file) != 0)
		ok = false;
	if (!ok)
		fprintf(stderr, "%s: %s: %s\n", self->name, path, strerror(errno));
	return ok;
}

int sfjoin(const struct command *self, int count, char **args)
{
	static const char *const names[] = {[SF_EXITED] = "exited", [SF_ENDED] = "ended", [SF_LOST] = "lost"};
	struct join join = {0};
	const char *problem = parse_join(&join, count, args);
	if (problem)
		return usage_error(self, problem);
	/* Before the join, which cannot be made twice. */
	if (join.directory && mkdir(join.directory, 0777) != 0 && errno != EEXIST) {
		fprintf(stderr, "%s: %s: %s\n", self->name, join.directory, strerror(errno));
		return 1;
	}
	sf_outcome *outcomes = sf_join(join.ticket, &join.options);
	if (!outcomes)
		return failed(self);
	int status = 0;
	for (const sf_outcome *o = outcomes; o; o = o->next) {
		printf("%d %s %d %zu %s\n", o->vmid, names[o->how], o->status, o->size, o->reason);
		if (status == 0 && (o->how == SF_LOST || (o->how == SF_EXITED && o->status != 0)))
			status = UNWELL_STATUS;
		if (join.directory && o->how == SF_EXITED && !write_result(self, join.directory, o))
			status = 1;
	}
	sf_free_outcomes(outcomes);
	return status;
}
