/* What the files of libsf share: one call is one connection. Not for programs. */
#ifndef SF_CALL_H
#define SF_CALL_H

#include <stdbool.h>
#include <stddef.h>

#pragma GCC visibility push(hidden)

/* Sets this thread's last error. */
void sf_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A connection to the agent, and no last error; or -1 with one. */
int sf_connect(void);
bool sf_send_all(int fd, const void *data, size_t len);
/* What follows "ok" and at most one space, inside the line; NULL after an error, with that as the last one. */
char *sf_parse_reply(char *line);
bool sf_ticket_ok(const char *ticket);

#pragma GCC visibility pop

#endif
