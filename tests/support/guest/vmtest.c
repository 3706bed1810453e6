/*
 * What the whole-system tests run in a guest; one static program:
 *
 *   vmtest clock               the wall clock, in ns since 1970
 *   vmtest draw FILE [US]      draws random numbers, one in US (500) microseconds, until SIGTERM; then writes "NS HEX" for each draw
 *   vmtest reseed              lets the kernel's random generator take up what entropy it has; it then draws on that for seconds
 *   vmtest writer DIR          writes files in DIR, over and over, each to the disk, until SIGTERM; then prints the round it is in
 *   vmtest call WORD...        one call on the agent socket; the words of its reply
 *   vmtest check DIR           "files=N wrong=W" for what a writer left
 *   vmtest fill N [FILE SEED]...   N pages of the pattern of SEED in place of what was in FILE, and on the disk when it ends
 *   vmtest compare [FILE SEED]...  "pages=N wrong=W" of each
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DRAWS_MAX 100000
#define FILES 24
#define WORDS 8192 /* 64 KiB a file */
#define DRAW_US 500
#define PAGE_WORDS 512

static int64_t wall_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static volatile sig_atomic_t stopping;
static void on_term(int signal) { stopping = signal; }

static int draw(const char *path, useconds_t every_us)
{
	static struct {
		int64_t at;
		uint64_t value[2];
	} draws[DRAWS_MAX];
	size_t count = 0;
	signal(SIGTERM, on_term);
	while (!stopping && count < DRAWS_MAX) {
		/* The time first: two VMs with a draw in common then have its time in common, wherever between the two lines the fork is. */
		draws[count].at = wall_ns();
		if (getrandom(draws[count].value, sizeof draws[count].value, 0) != sizeof draws[count].value)
			return 1;
		count++;
		usleep(every_us);
	}
	char unfinished[256];
	snprintf(unfinished, sizeof unfinished, "%s.new", path);
	FILE *f = fopen(unfinished, "w");
	for (size_t i = 0; f && i < count; i++)
		fprintf(f, "%lld %016llx%016llx\n", (long long)draws[i].at, (unsigned long long)draws[i].value[0],
			(unsigned long long)draws[i].value[1]);
	return f && fclose(f) == 0 && rename(unfinished, path) == 0 ? 0 : 1;
}

static int reseed(void)
{
	int fd = open("/dev/urandom", O_RDWR);
	return fd < 0 || ioctl(fd, RNDRESEEDCRNG) < 0;
}

/* A file's words follow from its number and round; its first two are these. */
static void fill(uint64_t *words, uint64_t file, uint64_t round)
{
	words[0] = file;
	words[1] = round;
	for (uint64_t i = 2; i < WORDS; i++)
		words[i] = (file << 48 ^ round << 16 ^ i) * 0x9e3779b97f4a7c15u;
}

static void path_of(char *path, size_t size, const char *dir, int file) { snprintf(path, size, "%s/f%02d", dir, file); }

static int writer(const char *dir)
{
	static uint64_t words[WORDS];
	char path[256];
	signal(SIGTERM, on_term);
	for (uint64_t round = 1;; round++)
		for (int file = 0; file < FILES; file++) {
			path_of(path, sizeof path, dir, file);
			int fd = open(path, O_WRONLY | O_CREAT, 0644);
			fill(words, (uint64_t)file, round);
			if (fd < 0 || pwrite(fd, words, sizeof words, 0) != sizeof words || fsync(fd) < 0) {
				perror(path);
				return 1;
			}
			close(fd);
			if (round == 2 && file == 0) {
				puts("writing");
				fflush(stdout);
			}
			if (stopping) {
				printf("round=%llu\n", (unsigned long long)round);
				return 0;
			}
		}
}

static int check(const char *dir)
{
	static uint64_t words[WORDS], wanted[WORDS];
	char path[256];
	int files = 0, wrong = 0;
	for (int file = 0; file < FILES; file++) {
		path_of(path, sizeof path, dir, file);
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			continue;
		files++;
		if (read(fd, words, sizeof words) != sizeof words) {
			wrong++;
		} else {
			fill(wanted, (uint64_t)file, words[1]);
			wrong += memcmp(words, wanted, sizeof words) != 0;
		}
		close(fd);
	}
	printf("files=%d wrong=%d\n", files, wrong);
	return 0;
}

/* No two pages are alike, nor those of two seeds. */
static void fill_page(uint64_t *words, uint64_t page, uint64_t seed)
{
	for (uint64_t i = 0; i < PAGE_WORDS; i++)
		words[i] = (seed << 40 ^ page << 16 ^ i) * 0x9e3779b97f4a7c15u;
}

static bool fill_file(const char *path, uint64_t pages, uint64_t seed)
{
	uint64_t words[PAGE_WORDS];
	int fd = open(path, O_WRONLY | O_CREAT, 0644);
	for (uint64_t page = 0; fd >= 0 && page < pages; page++) {
		fill_page(words, page, seed);
		if (write(fd, words, sizeof words) != sizeof words)
			break;
	}
	if (fd >= 0 && lseek(fd, 0, SEEK_CUR) == (off_t)(pages * sizeof words) && fsync(fd) == 0 && close(fd) == 0)
		return true;
	perror(path);
	return false;
}

static bool compare_file(const char *path, uint64_t seed)
{
	uint64_t words[PAGE_WORDS], wanted[PAGE_WORDS], pages = 0, wrong = 0;
	int fd = open(path, O_RDONLY);
	ssize_t n = 0;
	for (; fd >= 0 && (n = read(fd, words, sizeof words)) > 0; pages++) {
		fill_page(wanted, pages, seed);
		wrong += n != sizeof words || memcmp(words, wanted, sizeof words) != 0;
	}
	if (fd < 0 || n < 0) {
		perror(path);
		return false;
	}
	close(fd);
	printf("pages=%llu wrong=%llu\n", (unsigned long long)pages, (unsigned long long)wrong);
	return true;
}

static int each_file(const char *what, char **args)
{
	bool is_fill = !strcmp(what, "fill"), ok = true;
	uint64_t pages = is_fill ? strtoull(*args++, NULL, 10) : 0;
	for (; ok && args[0] && args[1]; args += 2) {
		uint64_t seed = strtoull(args[1], NULL, 10);
		ok = is_fill ? fill_file(args[0], pages, seed) : compare_file(args[0], seed);
	}
	return !ok;
}

static int call(int count, char **words)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX, .sun_path = "/run/snowflock/agent.sock"};
	char line[4096] = "", reply[70000];
	size_t length = 0;
	ssize_t n;
	for (int i = 0; i < count; i++)
		snprintf(line + strlen(line), sizeof line - strlen(line), "%s%s", words[i], i + 1 < count ? " " : "\n");
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&addr, sizeof addr) < 0 || write(fd, line, strlen(line)) < 0) {
		perror("agent socket");
		return 1;
	}
	while (length < sizeof reply && (n = read(fd, reply + length, sizeof reply - length)) > 0) {
		length += (size_t)n;
		if (reply[length - 1] == '\n')
			break;
	}
	return fwrite(reply, 1, length, stdout) == length && length > 0 ? 0 : 1;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	if (!strcmp(what, "clock"))
		return printf("%lld\n", (long long)wall_ns()) < 0;
	if (!strcmp(what, "draw") && (argc == 3 || argc == 4))
		return draw(argv[2], argc == 4 ? (useconds_t)atoi(argv[3]) : DRAW_US);
	if (!strcmp(what, "reseed"))
		return reseed();
	if (!strcmp(what, "call") && argc > 2)
		return call(argc - 2, argv + 2);
	if (!strcmp(what, "writer") && argc == 3)
		return writer(argv[2]);
	if (!strcmp(what, "check") && argc == 3)
		return check(argv[2]);
	if ((!strcmp(what, "fill") && argc > 2) || !strcmp(what, "compare"))
		return each_file(what, argv + 2);
	fprintf(stderr, "vmtest: unknown command '%s'\n", what);
	return 2;
}
