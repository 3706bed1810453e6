// forked-twice PAGES: forks a child, writes every third page, gives every seventh back, forks another child. Prints both pids and the
// address; ends, with the children, when its standard input does.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define PAGE 4096u

static pid_t freeze(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    return pid;
}

int main(int argc, char **argv)
{
    size_t pages = argc > 1 ? strtoul(argv[1], NULL, 10) : 0;
    unsigned char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return 1;
    madvise(area, pages * PAGE, MADV_HUGEPAGE);
    for (size_t page = 0; page < pages; page++)
        memset(area + page * PAGE, (int)(page % 255) + 1, PAGE);
    pid_t first = freeze();
    for (size_t page = 0; page < pages; page += 3)
        area[page * PAGE + 1]++;
    for (size_t page = 0; page < pages; page += 7)
        madvise(area + page * PAGE, PAGE, MADV_DONTNEED);
    pid_t second = freeze();
    printf("%d %d %jx\n", first, second, (uintmax_t)(uintptr_t)area);
    fflush(stdout);
    char byte;
    while (read(0, &byte, 1) > 0) {
    }
    kill(first, SIGKILL);
    kill(second, SIGKILL);
    return 0;
}
