/*
 * Stopping everybody else for a while, with the freezer of cgroup v2 (kernel: Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze).
 *
 *   /sys/fs/cgroup                  process 1 where it has no cgroup of its own (sf-init), kernel threads: never frozen
 *   /sys/fs/cgroup/init.scope       process 1 where it is systemd: never frozen
 *   /sys/fs/cgroup/snowflock.agent  the agent and the hooks of a clone
 *   /sys/fs/cgroup/snowflock.rest   what else has no cgroup of its own
 *   /sys/fs/cgroup/...              what others made: slices and containers
 *
 * A frozen process finishes the system call that it is in and then executes no instruction more; SIGKILL still ends it. Where there is no
 * cgroup v2 nobody is stopped.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"
#define OWN "snowflock.agent"
#define REST "snowflock.rest"

static bool usable;
static int rest_fd = -1;

static bool is_kernel_thread(long pid)
{
	char path[64], target[8];
	snprintf(path, sizeof path, "/proc/%ld/exe", pid);
	return readlink(path, target, sizeof target) < 0;
}

/* To the rest, all of a cgroup but process 1 and the agent itself. */
static void move_to_rest(const char *procs)
{
	FILE *list = fopen(procs, "re");
	long pid;
	while (list && fscanf(list, "%ld", &pid) == 1) {
		char text[24];
		if (pid == 1 || pid == getpid() || is_kernel_thread(pid))
			continue;
		snprintf(text, sizeof text, "%ld", pid);
		write_file(ROOT "/" REST "/cgroup.procs", text); /* it may have ended */
	}
	if (list)
		fclose(list);
}

static bool have_cgroup2(void)
{
	struct statfs fs;
	if (statfs(ROOT, &fs) < 0)
		return false;
	if (fs.f_type == CGROUP2_SUPER_MAGIC)
		return true;
	/* The bare directory of sysfs; where something else is mounted, this system uses cgroup v1. */
	return fs.f_type == SYSFS_MAGIC && mount("cgroup2", ROOT, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
}

void freezer_open(void)
{
	if (options.no_identity)
		return;
	usable = have_cgroup2() && (mkdir(ROOT "/" OWN, 0755) == 0 || errno == EEXIST) && (mkdir(ROOT "/" REST, 0755) == 0 || errno == EEXIST) &&
		 write_file(ROOT "/" OWN "/cgroup.procs", "0") && (rest_fd = open(ROOT "/" REST, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) >= 0;
	if (!usable) {
		say("no cgroup v2: programs of a clone run while its hooks do");
		return;
	}
	move_to_rest(ROOT "/cgroup.procs");
	freezer_set(false); /* an agent before this one may have ended meanwhile */
}

void freezer_set(bool frozen)
{
	DIR *dir = usable ? opendir(ROOT) : NULL;
	if (!dir)
		return;
	for (struct dirent *e; (e = readdir(dir));) {
		char path[320];
		if (e->d_type != DT_DIR || e->d_name[0] == '.' || !strcmp(e->d_name, OWN) || !strcmp(e->d_name, "init.scope"))
			continue;
		snprintf(path, sizeof path, ROOT "/%s/cgroup.freeze", e->d_name);
		write_file(path, frozen ? "1" : "0");
	}
	closedir(dir);
}

/* Born there: moving there would wait for a grace period of the kernel's. */
pid_t freezer_fork_rest(void)
{
	struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)rest_fd};
	if (!usable)
		return fork();
	long pid = syscall(SYS_clone3, &args, sizeof args);
	return pid < 0 && (errno == ENOSYS || errno == EINVAL || errno == E2BIG) ? fork() : (pid_t)pid;
}

void freezer_release_hooks(void)
{
	if (usable)
		move_to_rest(ROOT "/" OWN "/cgroup.procs");
}
