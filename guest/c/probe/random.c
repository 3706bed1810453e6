/* sfrandom N: N bytes of the kernel's random generator in hex. */
#include "probe.h"

#include <stdio.h>
#include <sys/random.h>

int sfrandom(int argc, char **argv)
{
	unsigned char buf[4096];
	size_t n = (size_t)number_arg("sfrandom", argc > 1 ? argv[1] : NULL, 1, sizeof buf), have = 0;
	while (have < n) {
		ssize_t got = getrandom(buf + have, n - have, 0);
		if (got < 0) {
			perror("getrandom");
			return 1;
		}
		have += (size_t)got;
	}
	for (size_t i = 0; i < n; i++)
		printf("%02x", buf[i]);
	putchar('\n');
	return 0;
}
