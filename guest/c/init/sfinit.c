/*
 * The first process of SnowFlock's images: /init of the initramfs and /sbin/sf-init of a disk image.
 *
 *   mounts -> modules -> lo -> snowflock.root=DEV given? -> no:  scratch disk on /disk, then supervise
 *                                                        -> yes: that disk becomes /, its /sbin/sf-init (or /sbin/init) runs
 *
 * Supervising means: keep the agent and a root shell on the console alive, reap orphans, power off on SIGUSR2 or SIGTERM (what busybox
 * poweroff and reboot send). C rather than a shell script: under emulation each process a script starts costs milliseconds of boot.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MODULE_DIR "/lib/snowflock/modules"
#define AGENT "/usr/sbin/sfagent"
#define ROOT_WAIT_MS 10000
#define RESPAWN_MS 1000

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	fputs("sf-init: ", stderr);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

static void try_mount(const char *source, const char *dir, const char *type, unsigned long flags, const char *data)
{
	mkdir(dir, 0755);
	if (mount(source, dir, type, flags, data) < 0 && errno != EBUSY)
		say("mount %s: %s", dir, strerror(errno));
}

static bool mounted(const char *dir)
{
	struct stat here, above;
	char parent[64];
	snprintf(parent, sizeof parent, "%s/..", dir);
	return stat(dir, &here) == 0 && stat(parent, &above) == 0 && here.st_dev != above.st_dev;
}

static void mount_all(void)
{
	if (!mounted("/dev"))
		try_mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	if (!mounted("/proc"))
		try_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (!mounted("/sys"))
		try_mount("sys", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	if (!mounted("/run"))
		try_mount("run", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	if (!mounted("/tmp"))
		try_mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	try_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");
	try_mount("shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	symlink("/proc/self/fd", "/dev/fd");
}

/* In the order of their names, which begin with a number. */
static void load_modules(void)
{
	struct dirent **names;
	int n = scandir(MODULE_DIR, &names, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		char path[384];
		if (names[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, MODULE_DIR "/%s", names[i]->d_name);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			say("module %s: %s", names[i]->d_name, strerror(errno));
		if (fd >= 0)
			close(fd);
		free(names[i]);
	}
	if (n >= 0)
		free(names);
}

static void loopback_up(void)
{
	struct ifreq r = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &r) < 0)
		say("lo: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* The value of key= on the kernel command line. */
static bool kernel_option(const char *key, char *value, size_t size)
{
	char line[4096];
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return false;
	line[n] = 0;
	for (char *save, *word = strtok_r(line, " \n", &save); word; word = strtok_r(NULL, " \n", &save))
		if (!strncmp(word, key, strlen(key)) && word[strlen(key)] == '=') {
			snprintf(value, size, "%s", word + strlen(key) + 1);
			return true;
		}
	return false;
}

static void pause_ms(long ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
	nanosleep(&t, NULL);
}

static void move_mounts(const char *root)
{
	static const char *dirs[] = {"/dev", "/proc", "/sys", "/run", "/tmp"};
	for (size_t i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		char target[64];
		snprintf(target, sizeof target, "%s%s", root, dirs[i]);
		if (mount(dirs[i], target, NULL, MS_MOVE, NULL) < 0)
			say("moving %s: %s", dirs[i], strerror(errno));
	}
}

/* Removes what the initramfs holds: its memory belongs to the guest now, and clones need not fetch it. */
static void empty_initramfs(int dir_fd, dev_t dev)
{
	DIR *dir = fdopendir(dir_fd);
	for (struct dirent *e; dir && (e = readdir(dir));) {
		struct stat st;
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (fstatat(dir_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || st.st_dev != dev)
			continue;
		if (S_ISDIR(st.st_mode)) {
			int sub = openat(dir_fd, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
			if (sub >= 0)
				empty_initramfs(sub, dev);
			unlinkat(dir_fd, e->d_name, AT_REMOVEDIR);
		} else {
			unlinkat(dir_fd, e->d_name, 0);
		}
	}
	if (dir)
		closedir(dir);
}

/* Returns only on failure. */
static void switch_root(const char *device)
{
	struct stat st;
	int waited = 0, old;
	while (access(device, F_OK) < 0 && waited < ROOT_WAIT_MS) {
		pause_ms(10);
		waited += 10;
	}
	mkdir("/newroot", 0755);
	if (mount(device, "/newroot", "ext4", 0, NULL) < 0) {
		say("cannot mount %s as root: %s", device, strerror(errno));
		return;
	}
	old = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fstat(old, &st);
	move_mounts("/newroot");
	if (chdir("/newroot") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0) {
		say("cannot switch to %s: %s", device, strerror(errno));
		return;
	}
	empty_initramfs(old, st.st_dev);
	execl("/sbin/sf-init", "sf-init", NULL);
	execl("/sbin/init", "init", NULL);
	say("%s has neither /sbin/sf-init nor /sbin/init", device);
}

static void setup(bool first)
{
	char root[128];
	mount_all();
	if (first)
		load_modules();
	loopback_up();
	if (first && kernel_option("snowflock.root", root, sizeof root))
		switch_root(root);
	else if (first && access("/dev/vda", F_OK) == 0) {
		mkdir("/disk", 0755);
		mount("/dev/vda", "/disk", "ext4", 0, NULL); /* a disk without a file system is the user's affair */
	}
	mkdir("/root", 0700);
}

static const char *console(void)
{
	return access("/dev/ttyS0", F_OK) == 0 ? "/dev/ttyS0" : "/dev/console";
}

/* The agent may stop the others in a clone (agent/freezer.c); before it runs it finds this one by itself. */
static void join_rest(void)
{
	int fd = open("/sys/fs/cgroup/snowflock.rest/cgroup.procs", O_WRONLY | O_CLOEXEC);
	if (fd >= 0 && write(fd, "0", 1) < 0)
		say("cgroup: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
}

static pid_t start(char *const argv[], bool on_console)
{
	pid_t pid = fork();
	if (pid != 0)
		return pid;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	if (on_console) {
		join_rest();
		int fd = open(console(), O_RDWR);
		if (fd >= 0) {
			ioctl(fd, TIOCSCTTY, 1);
			dup2(fd, 0);
			dup2(fd, 1);
			dup2(fd, 2);
			if (fd > 2)
				close(fd);
		}
		if (chdir("/root") < 0)
			_exit(126);
	}
	execv(argv[0], argv);
	say("%s: %s", argv[0], strerror(errno));
	_exit(127);
}

static void shut_down(int how)
{
	kill(-1, SIGTERM);
	pause_ms(200);
	kill(-1, SIGKILL);
	sync();
	mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	umount2("/disk", 0);
	reboot(how);
}

static void supervise(void)
{
	static char *agent[] = {AGENT, NULL}, *shell[] = {"/bin/sh", "-l", NULL};
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	pid_t agent_pid = start(agent, false), shell_pid = start(shell, true);
	for (;;) {
		int got = sigwaitinfo(&set, NULL);
		if (got == SIGTERM)
			shut_down(RB_AUTOBOOT);
		if (got == SIGUSR1 || got == SIGUSR2)
			shut_down(RB_POWER_OFF);
		for (pid_t pid; (pid = waitpid(-1, NULL, WNOHANG)) > 0;) {
			if (pid != agent_pid && pid != shell_pid)
				continue;
			pause_ms(RESPAWN_MS); /* so that a program that cannot run does not run all the time */
			if (pid == agent_pid)
				agent_pid = start(agent, false);
			else
				shell_pid = start(shell, true);
		}
	}
}

int main(int argc, char **argv)
{
	(void)argc;
	if (getpid() != 1) {
		fprintf(stderr, "sf-init: runs as process 1 only\n");
		return 1;
	}
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "linux", 1);
	/* As /init it is the initramfs's; by any other name the disk's, after a switch. */
	setup(!strcmp(argv[0], "/init"));
	supervise();
}
