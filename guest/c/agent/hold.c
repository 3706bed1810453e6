/*
 * Holding the CPUs of this VM, so that nothing runs between the freeze of a fork and the new identity.
 *
 *   IDLE --HOLD: own output drained--> GATHERING --one spinner on each CPU--> HELD --IDENTITY, or 5 s--> IDLE
 *
 * The agent's own thread becomes SCHED_FIFO 99 on one CPU and polls the port there; a waiting thread per further CPU spins. Real-time
 * throttling is off, or the kernel would give 5% of each second to others.
 */
#define _GNU_SOURCE
#include "agent.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CPUS_MAX 256
#define HOLD_MS 5000
#define GATHER_MS 1000
#define SPINNER_STACK_BYTES (64 * 1024)
#define PAGE_BYTES 4096

static cpu_set_t all_cpus;
static cpu_set_t online; /* at the last hold */
static int home_cpu;
static unsigned spinners;
static sem_t wake[CPUS_MAX];
static int spinner_cpu[CPUS_MAX];
static atomic_bool released;
static atomic_uint spinning;

unsigned online_cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);
	return n > 0 ? (unsigned)n : 1;
}

static void relax(void)
{
	if (options.no_identity)
		sched_yield();
	else
		__builtin_ia32_pause();
}

static void be_first(bool first)
{
	if (options.no_identity)
		return;
	struct sched_param p = {.sched_priority = first ? 99 : 0};
	if (sched_setscheduler(0, first ? SCHED_FIFO : SCHED_OTHER, &p) < 0)
		say("cannot change priority: %s", strerror(errno));
}

static void pin(int cpu)
{
	cpu_set_t one;
	if (options.no_identity || spinners == 0)
		return; /* on one CPU there is nowhere else to go */
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof one, cpu < 0 ? &all_cpus : &one);
}

static void *spinner(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	be_first(true);
	for (;;) {
		while (sem_wait(&wake[me]) < 0)
			;
		pin(spinner_cpu[me]); /* each time: the kernel forgets it when the CPU goes offline */
		atomic_fetch_add(&spinning, 1);
		while (!atomic_load_explicit(&released, memory_order_acquire))
			relax();
		atomic_fetch_sub(&spinning, 1);
	}
	return NULL;
}

void hold_open(void)
{
	pthread_attr_t attr;
	sched_getaffinity(0, sizeof all_cpus, &all_cpus);
	if (!options.no_identity && !write_file("/proc/sys/kernel/sched_rt_runtime_us", "-1"))
		say("real-time throttling stays on: others may run for an instant while the CPUs are held");
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, SPINNER_STACK_BYTES);
	home_cpu = -1;
	for (int cpu = 0; cpu < CPU_SETSIZE && spinners < CPUS_MAX; cpu++) {
		pthread_t thread;
		if (!CPU_ISSET(cpu, &all_cpus))
			continue;
		if (home_cpu < 0) {
			home_cpu = cpu;
			continue;
		}
		spinner_cpu[spinners] = cpu;
		sem_init(&wake[spinners], 0, 0);
		if (pthread_create(&thread, &attr, spinner, (void *)(uintptr_t)spinners) != 0)
			die("cannot start a thread for CPU %d", cpu);
		spinners++;
	}
	pthread_attr_destroy(&attr);
}

static void release(void) { atomic_store_explicit(&released, true, memory_order_release); }

static bool gather(void)
{
	unsigned wanted = 0;
	int64_t deadline = now_ms() + GATHER_MS;
	while (atomic_load(&spinning) > 0 && now_ms() < deadline) /* the last hold's spinners have all left */
		sched_yield();
	sched_getaffinity(0, sizeof online, &online); /* leaves out what is offline */
	pin(home_cpu);
	be_first(true);
	atomic_store(&released, false);
	for (unsigned i = 0; i < spinners; i++)
		if (CPU_ISSET(spinner_cpu[i], &online)) {
			wanted++;
			sem_post(&wake[i]);
		}
	while (atomic_load(&spinning) < wanted) {
		if (now_ms() >= deadline)
			return false;
		relax();
	}
	return true;
}

/*
 * After a fork(2) for a command the agent's memory is write-protected, and the first write to each page is a page fault: taken here once,
 * instead of in every clone.
 */
static void own_memory(void)
{
	extern char __data_start[], _end[];
	for (char *p = __data_start; p < _end; p += PAGE_BYTES)
		__atomic_fetch_or(p, 0, __ATOMIC_RELAXED);
}

void hold(uint32_t fork_id)
{
	struct frame f = {0};
	bool found = false;
	own_memory();
	if (!port_drain(now_ms() + HOLD_MS)) {
		say("fork %u: the host does not read, so the CPUs are not held", fork_id);
		return;
	}
	settle_scan();
	if (gather()) {
		connections_list();
		port_send(FRAME_HELD, fork_id, NULL, 0, NULL, 0);
		int64_t deadline = now_ms() + HOLD_MS;
		if (port_drain(deadline))
			while (!(found = port_find_identity(fork_id, &f)) && now_ms() < deadline)
				relax();
		if (!found)
			say("fork %u: no identity within %d ms of HELD; going on", fork_id, HOLD_MS);
	} else {
		say("fork %u: not every CPU could be held", fork_id);
	}
	if (found && f.type == FRAME_IDENTITY)
		identity_apply(fork_id, f.payload, f.len, release);
	release();
	be_first(false);
	pin(-1);
	settle_run(fork_id);
}

bool cpus_differ(long wanted) { return wanted > 0 && wanted != CPU_COUNT(&online); }

/* The first ones stay, among them always CPU 0. Where the kernel cannot do it, it stays as it is. */
void cpus_set(long wanted)
{
	for (int cpu = 1; wanted > 0 && cpu < CPUS_MAX; cpu++) {
		char path[64];
		bool on = cpu < wanted;
		snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/online", cpu);
		if (on == !!CPU_ISSET(cpu, &online) || options.no_identity)
			continue;
		if (!write_file(path, on ? "1" : "0"))
			say("CPU %d cannot be put %s: %s", cpu, on ? "online" : "offline", strerror(errno));
	}
}
