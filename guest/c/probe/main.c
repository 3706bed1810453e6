#include "probe.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
	if (!strcmp(name, "sfgap"))
		return sfgap(argc, argv);
	if (!strcmp(name, "sftouch"))
		return sftouch(argc, argv);
	if (!strcmp(name, "sfmemtest"))
		return sfmemtest(argc, argv);
	if (!strcmp(name, "sfrandom"))
		return sfrandom(argc, argv);
	if (!strcmp(name, "sffork"))
		return sffork(argc, argv);
	if (!strcmp(name, "sfresult"))
		return sfresult(argc, argv);
	fprintf(stderr, "%s: call it as sfgap, sftouch, sfmemtest, sfrandom, sffork or sfresult\n", name);
	return 2;
}
