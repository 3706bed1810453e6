// Programs that make the calls of guest-calls.json, each in its language, and print what came of each as a line of JSON.

/** Arguments: the vectors' file, and which of its lists. */
export const PYTHON_CALLS = `
import json, sys
import snowflock
def plain(value):
    if isinstance(value, snowflock.TicketResult):
        return {"ticket": value.ticket, "allowed": value.allowed_clones}
    if isinstance(value, snowflock.CloneResult):
        return {"nclones": value.nclones, "vmid": value.vmid}
    return value
for vector in json.load(open(sys.argv[1]))[sys.argv[2]]:
    try:
        print(json.dumps({"result": plain(getattr(snowflock, vector["call"])(*vector["args"]))}))
    except snowflock.SnowflockError as error:
        print(json.dumps({"error": error.code}))
`;

/** Arguments: the module's URL, the vectors' file, and which of its lists. */
export const NODE_CALLS = `
import { readFileSync } from 'node:fs';
const snowflock = await import(process.argv[1]);
const plain = (value) => {
  if (Array.isArray(value)) return value.map(({ vmid, processors }) => [vmid, processors]);
  if (value && 'allowedClones' in value) return { ticket: value.ticket, allowed: value.allowedClones };
  return value ?? null;
};
for (const { call, args } of JSON.parse(readFileSync(process.argv[2], 'utf8'))[process.argv[3]]) {
  const name = call.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  const [first, procs, min, block] = args;
  const options = {
    request_clone_ticket: [first, { procs, min, block }],
    clone_master: args.length > 1 ? [first, { seed: procs }] : args,
    ic_exit: args.length > 0 ? [{ status: first }] : args,
  };
  const given = options[call] ?? args;
  try {
    console.log(JSON.stringify({ result: plain(await snowflock[name](...given)) }));
  } catch (error) {
    console.log(JSON.stringify({ error: error instanceof snowflock.SnowflockError ? error.code : String(error) }));
  }
}
`;

/** Argument: a file with a call a line, its words separated by tabs; '\\' is NULL, a vertical tab a newline. */
export const C_CALLS = String.raw`
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sf.h"
static void tickets(struct sf_ticket_list *t) { for (int n = 0; t; t = t->next) printf("%s\"%s\"", n++ ? "," : "", t->ticket); }
static void error(void) { printf("{\"error\":\"%.*s\"}\n", (int)strcspn(sf_last_error(), ":"), sf_last_error()); }
static void done(int failed) { if (failed || *sf_last_error()) error(); else puts("{\"result\":null}"); }
static int on(const char *word) { return !strcmp(word, "true"); }
static void make(char *call, char **a)
{
	struct sf_result *r = NULL;
	if (!strcmp(call, "request_clone_ticket")) r = REQUEST_CLONE_TICKET(atoi(a[0]), on(a[1]), atoi(a[2]), on(a[3]));
	else if (!strcmp(call, "request_vm_ticket")) r = REQUEST_VM_TICKET(atoi(a[0]));
	else if (!strcmp(call, "request_proc_ticket")) r = REQUEST_PROC_TICKET(atoi(a[0]));
	else if (!strcmp(call, "list_tickets")) r = LIST_TICKETS();
	else if (!strcmp(call, "read_ticket_info")) r = READ_TICKET_INFO(a[0]);
	else if (!strcmp(call, "clone_master")) r = a[1] ? sf_clone_master(a[0], !strcmp(a[1], "same")) : CLONE_MASTER(a[0]);
	else if (!strcmp(call, "dispose_ticket")) { DISPOSE_TICKET(a[0]); return done(0); }
	else if (!strcmp(call, "merge_master")) return done(MERGE_MASTER(a[0]));
	else if (!strcmp(call, "merge_all")) { MERGE_ALL(); return done(0); }
	else if (!strcmp(call, "reset_clone")) return done(sf_reset(atoi(a[0])));
	else if (!strcmp(call, "ic_kill")) return done(IC_KILL(a[0]));
	else if (!strcmp(call, "ic_join")) { IC_JOIN(a[0]); return done(0); }
	else if (!strcmp(call, "ic_exit")) return done(a[0] ? sf_exit(atoi(a[0]), NULL, 0) : IC_EXIT());
	else if (!strcmp(call, "shutdown_cluster")) return done(SHUTDOWN_CLUSTER());
	if (!r) return error();
	printf("{\"result\":");
	if (!strncmp(call, "request", 7))
		printf(*r->ticket ? "{\"ticket\":\"%2$s\",\"allowed\":%1$d}" : "{\"ticket\":null,\"allowed\":%1$d}", r->rc.allowed_clones, r->ticket);
	else if (!strcmp(call, "clone_master"))
		printf("{\"nclones\":%d,\"vmid\":%d}", r->rc.number_clones, r->vmid);
	else if (!strcmp(call, "list_tickets")) {
		printf("{\"unused\":["); tickets(r->unused_tickets);
		printf("],\"outstanding\":["); tickets(r->outstanding_tickets); printf("]}");
	} else {
		printf("[");
		for (struct sf_clone_info *i = r->clone_list; i; i = i->next)
			printf("[%d,%d]%s", i->vmid, i->processors, i->next ? "," : "");
		printf("]");
	}
	puts("}");
	FREE_SF_RES(r);
}
int main(int argc, char **argv)
{
	static char line[4096];
	FILE *file = fopen(argv[argc - 1], "r");
	while (file && fgets(line, sizeof line, file)) {
		char *words[8] = {0}, *rest = line;
		line[strcspn(line, "\n")] = 0;
		for (int n = 0; n < 8 && rest; n++) {
			char *word = strsep(&rest, "\t");
			for (char *v; (v = strchr(word, '\v')); ) *v = '\n';
			words[n] = strcmp(word, "\\") ? word : NULL;
		}
		make(words[0], words + 1);
	}
	return 0;
}
`;
