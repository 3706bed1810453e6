/* What the commands of a VM share. */
#ifndef SF_COMMAND_H
#define SF_COMMAND_H

#define USAGE_STATUS 2
#define JOIN_ARGS_MAX 16

struct command {
	const char *name;
	int least, most; /* arguments */
	const char *help;
	int (*run)(const struct command *self, int count, char **args);
};

/* Both print to stderr and give the exit status. */
int usage_error(const struct command *self, const char *problem);
int failed(const struct command *self);

#define SFEXIT_HELP                                                                                                     \
	"sfexit [STATUS [FILE]]\n"                                                                                      \
	"Ends this clone with STATUS (default 0) and the contents of FILE ('-': standard input) as its result."
int sfexit(const struct command *self, int count, char **args);

#define SFJOIN_HELP                                                                                                     \
	"sfjoin [--count K] [--deadline S] [--budget-seconds S] [--budget-bytes B] [--results DIR] TICKET\n"            \
	"Waits until all clones of TICKET have ended, or K have exited, S seconds have passed, the clones have run for\n" \
	"S seconds together, or returned B bytes; ends the others. Prints a line for each: VMID HOW STATUS BYTES REASON,\n" \
	"and writes results to DIR/VMID. Exit status 3: one was lost, or exited with another status than 0."
int sfjoin(const struct command *self, int count, char **args);

#endif
