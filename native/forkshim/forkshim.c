/*
 * forkshim: loaded into a stock QEMU by LD_PRELOAD, lets its guest memory be frozen by fork(2).
 *
 * What it changes in QEMU:
 *   - madvise(MADV_DONTFORK) is recorded and not done. QEMU asks it for each RAM block, so the record is exactly the list
 *     of RAM blocks, and a forked child keeps them.
 *   - In a clone (SNOWFLOCK_RAM_FILE set: its RAM is a private mapping of that file, served by the memtap):
 *     madvise(MADV_HUGEPAGE) is swallowed for everything, or each first fault would read 2 MiB; and
 *     fallocate(PUNCH_HOLE) on that file succeeds without doing anything: the discard of the private pages, which QEMU
 *     does next by madvise(MADV_DONTNEED), is all that a discard means there.
 *
 * What it adds: a thread that serves the unix socket SNOWFLOCK_FORK_SOCKET, one line a request, one line a reply:
 *   "ranges"            ->  "ok START:LENGTH ..."            RAM blocks, hex
 *   "fork LEASE-PATH"   ->  "ok PID MICROSECONDS"            a frozen copy of this process exists
 *   "rewind"            ->  "ok"                             in a stopped clone: its RAM is what the file holds, and a device
 *                                                            state may be loaded once more, by xen-load-devices-state
 *   anything else       ->  "err REASON"
 *
 * The frozen copy never runs QEMU code: it closes every descriptor, connects to the unix socket LEASE-PATH, sends its pid
 * as a line, and sleeps until that connection ends; then it exits. So whoever listens there (the memserver) owns its life.
 * It must only be forked while the VM is stopped; the caller sees to that.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* RAM blocks of one QEMU: RAM itself, firmware, option ROMs, ACPI tables. */
enum { RANGES_MAX = 64, CHILDREN_MAX = 256, LINE_MAX_BYTES = 256 };
/* Executable anonymous mappings above this are the TCG code buffer: the frozen copy has no use for it. */
#define CODE_BUFFER_MIN_BYTES (16ul << 20)
#define REAP_INTERVAL_MS 500

static struct { uintptr_t start; size_t length; } ranges[RANGES_MAX];
static int range_count;
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;
static int (*next_madvise)(void *, size_t, int);
static int (*next_fallocate)(int, int, off_t, off_t);
static int is_clone;
static struct stat ram_file;
static pid_t children[CHILDREN_MAX];

static void record_range(void *start, size_t length)
{
    pthread_mutex_lock(&ranges_lock);
    if (range_count < RANGES_MAX) {
        ranges[range_count].start = (uintptr_t)start;
        ranges[range_count++].length = length;
    }
    pthread_mutex_unlock(&ranges_lock);
}

int madvise(void *start, size_t length, int advice)
{
    if (!next_madvise)
        next_madvise = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
    if (advice == MADV_DONTFORK) {
        record_range(start, length);
        return 0;
    }
    if (advice == MADV_HUGEPAGE && is_clone)
        return 0;
    return next_madvise(start, length, advice);
}

static int shim_fallocate(int fd, int mode, off_t offset, off_t length)
{
    struct stat st;

    if (is_clone && (mode & FALLOC_FL_PUNCH_HOLE) && fstat(fd, &st) == 0 && st.st_dev == ram_file.st_dev &&
        st.st_ino == ram_file.st_ino)
        return 0;
    if (!next_fallocate)
        next_fallocate = (int (*)(int, int, off_t, off_t))dlsym(RTLD_NEXT, "fallocate");
    return next_fallocate(fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return shim_fallocate(fd, mode, offset, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return shim_fallocate(fd, mode, offset, length); }

/* Keeps the TCG code buffer out of frozen copies: its page tables would cost more to copy than the guest's. */
static void exclude_code_buffers(void)
{
    char line[LINE_MAX_BYTES];
    FILE *maps = fopen("/proc/self/maps", "re");

    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end, inode = 1;
        char perms[5];

        if (sscanf(line, "%lx-%lx %4s %*x %*s %lu", &start, &end, perms, &inode) == 4 && perms[2] == 'x' && inode == 0 &&
            end - start >= CODE_BUFFER_MIN_BYTES)
            next_madvise((void *)start, end - start, MADV_DONTFORK);
    }
    if (maps)
        fclose(maps);
}

/* Runs in the frozen copy, beside the memory of threads that no longer exist: system calls only, no libc state. */
static void __attribute__((noreturn)) be_frozen(const struct sockaddr_un *lease)
{
    char text[16], byte;
    long pid = syscall(SYS_getpid), digit = sizeof text;
    int fd;

    text[--digit] = '\n';
    for (long rest = pid; rest > 0; rest /= 10)
        text[--digit] = (char)('0' + rest % 10);
    syscall(SYS_close_range, 0, ~0u, 0);
    syscall(SYS_prctl, PR_SET_NAME, "sf-frozen", 0, 0, 0);
    fd = (int)syscall(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && syscall(SYS_connect, fd, lease, sizeof *lease) == 0 &&
        syscall(SYS_write, fd, text + digit, sizeof text - digit) > 0) {
        while (syscall(SYS_read, fd, &byte, 1) > 0)
            ;
    }
    for (;;)
        syscall(SYS_exit_group, 0);
}

static long long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000ll + t.tv_nsec / 1000;
}

static int do_fork(const char *lease_path, char *reply, size_t size)
{
    struct sockaddr_un lease = {.sun_family = AF_UNIX};
    long long begin = now_us();
    int slot = 0;
    long pid;

    if (strlen(lease_path) >= sizeof lease.sun_path)
        return snprintf(reply, size, "err lease path is longer than %zu\n", sizeof lease.sun_path - 1);
    strcpy(lease.sun_path, lease_path);
    while (slot < CHILDREN_MAX && children[slot])
        slot++;
    if (slot == CHILDREN_MAX)
        return snprintf(reply, size, "err %d frozen copies exist already\n", CHILDREN_MAX);
    pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        be_frozen(&lease);
    if (pid < 0)
        return snprintf(reply, size, "err clone: %s\n", strerror(errno));
    children[slot] = (pid_t)pid;
    return snprintf(reply, size, "ok %ld %lld\n", pid, now_us() - begin);
}

static int do_ranges(char *reply, size_t size)
{
    int used = snprintf(reply, size, "ok");

    exclude_code_buffers();
    pthread_mutex_lock(&ranges_lock);
    for (int i = 0; i < range_count; i++)
        used += snprintf(reply + used, size - (size_t)used, " %lx:%zx", (unsigned long)ranges[i].start, ranges[i].length);
    pthread_mutex_unlock(&ranges_lock);
    return used + snprintf(reply + used, size - (size_t)used, "\n");
}

/*
 * xen-load-devices-state ends the registration of an incoming migration without ever having made it, and aborts if there is none
 * (QEMU's yank). So it is made here. What it is called by is asked of QEMU, whose numbers may change.
 */
static const char *expect_device_state(void)
{
    const void *names = dlsym(RTLD_DEFAULT, "YankInstanceType_lookup");
    int (*number_of)(const void *, const char *, int, void *) =
        (int (*)(const void *, const char *, int, void *))dlsym(RTLD_DEFAULT, "qapi_enum_parse");
    _Bool (*registers)(const void *, void *) =
        (_Bool (*)(const void *, void *))dlsym(RTLD_DEFAULT, "yank_register_instance");
    struct { int type; void *of_other_types[2]; } migration = {0};

    if (!names || !number_of || !registers)
        return "this QEMU exports no yank_register_instance";
    migration.type = number_of(names, "migration", -1, NULL);
    if (migration.type < 0)
        return "this QEMU has no yank instance for migration";
    registers(&migration, NULL); /* false: there is one already, which is as good */
    return NULL;
}

/*
 * QEMU lets no guest see the ticks of its processors go back (cpu_get_ticks of softmmu/cpu-timers.c): after the load they would go on from
 * where they are now. Where it keeps the last ones is looked at before it is trusted: in a VM that is stopped, they and the ones that
 * it stands at are the same.
 */
static const char *forget_ticks(void)
{
    int64_t (*ticks)(void) = (int64_t (*)(void))dlsym(RTLD_DEFAULT, "cpu_get_ticks");
    struct { int64_t last, at_stop; } *timers = dlsym(RTLD_DEFAULT, "timers_state");
    int64_t now;

    if (!ticks || !timers)
        return "this QEMU exports no timers_state";
    now = ticks();
    if (timers->last != now || timers->at_stop != now)
        return "this QEMU keeps the ticks of its processors in another way, or the VM is not stopped";
    timers->last = 0;
    return NULL;
}

static int do_rewind(char *reply, size_t size)
{
    const char *problem;
    int found = -1;

    if (!is_clone)
        return snprintf(reply, size, "err only a clone has something to go back to\n");
    for (int i = 0; i < range_count; i++)
        if ((off_t)ranges[i].length == ram_file.st_size)
            found = i;
    if (found < 0)
        return snprintf(reply, size, "err no RAM block is as large as the file\n");
    problem = expect_device_state();
    if (!problem)
        problem = forget_ticks();
    if (problem)
        return snprintf(reply, size, "err %s\n", problem);
    if (next_madvise((void *)ranges[found].start, ranges[found].length, MADV_DONTNEED) < 0)
        return snprintf(reply, size, "err madvise: %s\n", strerror(errno));
    return snprintf(reply, size, "ok\n");
}

static void reap(void)
{
    for (int i = 0; i < CHILDREN_MAX; i++)
        if (children[i] && waitpid(children[i], NULL, WNOHANG) != 0)
            children[i] = 0;
}

static void serve(int connection)
{
    char line[LINE_MAX_BYTES], reply[RANGES_MAX * 40 + 16];
    size_t used = 0;

    for (;;) {
        struct pollfd p = {connection, POLLIN, 0};
        ssize_t got;
        char *end;
        int length;

        reap();
        if (poll(&p, 1, REAP_INTERVAL_MS) == 0)
            continue;
        got = read(connection, line + used, sizeof line - 1 - used);
        if (got <= 0)
            return;
        used += (size_t)got;
        line[used] = 0;
        end = strchr(line, '\n');
        if (!end && used < sizeof line - 1)
            continue;
        if (end)
            *end = 0;
        if (end && strcmp(line, "ranges") == 0)
            length = do_ranges(reply, sizeof reply);
        else if (end && strncmp(line, "fork ", 5) == 0)
            length = do_fork(line + 5, reply, sizeof reply);
        else if (end && strcmp(line, "rewind") == 0)
            length = do_rewind(reply, sizeof reply);
        else
            length = snprintf(reply, sizeof reply, "err unknown request\n");
        if (send(connection, reply, (size_t)length, MSG_NOSIGNAL) != length)
            return;
        used = 0;
    }
}

static void *control_thread(void *listener)
{
    int fd = (int)(intptr_t)listener;

    for (;;) {
        struct pollfd p = {fd, POLLIN, 0};
        int connection;

        reap();
        if (poll(&p, 1, REAP_INTERVAL_MS) <= 0)
            continue;
        connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (connection < 0)
            continue;
        serve(connection);
        close(connection);
    }
    return NULL;
}

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("SNOWFLOCK_FORK_SOCKET"), *ram = getenv("SNOWFLOCK_RAM_FILE");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    sigset_t all, before;
    pthread_t thread;
    int fd;

    next_madvise = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "madvise");
    unsetenv("LD_PRELOAD");
    is_clone = ram && stat(ram, &ram_file) == 0;
    if (!path)
        return;
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "forkshim: socket path is too long: %s\n", path);
        exit(1);
    }
    strcpy(address.sun_path, path);
    unlink(path);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 4) < 0) {
        fprintf(stderr, "forkshim: cannot listen on %s: %s\n", path, strerror(errno));
        exit(1);
    }
    /* QEMU handles signals in its own threads only. */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    if (pthread_create(&thread, NULL, control_thread, (void *)(intptr_t)fd) != 0) {
        fprintf(stderr, "forkshim: cannot start the control thread\n");
        exit(1);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}
