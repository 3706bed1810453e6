/* sftouch MIB: fills that much memory with random-looking data, says so, and holds it until stdin ends. */
#include "probe.h"

#include <stdio.h>
#include <unistd.h>

int sftouch(int argc, char **argv)
{
	char c[256];
	size_t pages = (size_t)number_arg("sftouch", argc > 1 ? argv[1] : NULL, 1, 1 << 20) * 256;
	pattern_fill(map_pages(pages), pages, 0x5f0c);
	puts("ready");
	fflush(stdout);
	while (read(0, c, sizeof c) > 0)
		;
	return 0;
}
