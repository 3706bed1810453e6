// What can break between a clone's fault and its page, broken on purpose.

import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { requireVm } from '../../../tests/require-vm.ts';
import { cleanupMount, isMounted, MemtapProcess, type MemserverProcess } from '../src/index.ts';
import { startChild } from '../src/supervisor/child-process.ts';
import { FaultyProxy } from './faulty-proxy.ts';
import { Harness, type SourceProcess } from './vm-harness.ts';

/** Far less than the minute for which a source is looked for. */
const AT_ONCE_MS = 20_000;
const PAGES = 8192;
const SEED = 9;
/** What fault-client exits with when it gets SIGBUS. */
const SIGBUS_EXIT = 7;

interface ProxiedStack {
  readonly memserver: MemserverProcess;
  readonly source: SourceProcess;
  readonly proxy: FaultyProxy;
  readonly memtap: MemtapProcess;
  readonly lost: Promise<string>;
}

describe.skipIf(!requireVm(['root', 'fuse']))('memserver and memtap under faults', () => {
  let harness: Harness;
  beforeEach(() => {
    harness = new Harness();
  });
  afterEach(async () => {
    await harness[Symbol.asyncDispose]();
  });

  async function proxied(
    options: { sourceTimeoutMs?: number; memtapKey?: Buffer } = {},
  ): Promise<ProxiedStack> {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    const source = await harness.source({
      leasePath: memserver.leasePath,
      pages: PAGES,
      seed: SEED,
      kind: 'dense',
    });
    const { presence } = await memserver.freeze({ pid: source.pid, ramRanges: source.ranges });
    const proxy = await FaultyProxy.listen(memserver);
    harness.defer(() => proxy[Symbol.asyncDispose]());
    const memtap = await harness.memtap({ pages: PAGES, sourceTimeoutMs: options.sourceTimeoutMs ?? 10_000 });
    const lost = new Promise<string>((resolve) => memtap.onSourceLost(({ reason }) => resolve(reason)));
    await memtap.attach({
      sources: [{ address: '127.0.0.1', port: proxy.port }],
      key: options.memtapKey ?? key,
      presence,
    });
    return { memserver, source, proxy, memtap, lost };
  }

  /** Until somebody has begun to read. */
  async function reads(memtap: MemtapProcess): Promise<void> {
    const before = (await memtap.stats()).demandReads;
    await expect.poll(async () => (await memtap.stats()).demandReads).toBeGreaterThan(before);
  }

  it('a memtap that is killed while it rehearses is gone at once', async () => {
    const key = randomBytes(32);
    const memserver = await harness.memserver({ key });
    for (const afterMs of [0, 5, 10, 20, 40, 80, 120, 160]) {
      const memtap = await harness.memtap({ pages: PAGES });
      await memtap.connect({ sources: [{ address: '127.0.0.1', port: memserver.port }], key });
      await sleep(afterMs);
      process.kill(memtap.pid, 'SIGKILL');
      // a process that waits for its own mount would never end, and keep all that use the mount
      await expect.poll(() => existsSync(`/proc/${memtap.pid}/exe`), { timeout: AT_ONCE_MS }).toBe(false);
      await cleanupMount(memtap.mountPath);
    }
  });

  it('a memtap that breaks ends at once, and whoever reads gets an error', async () => {
    const mount = harness.path('breaks.mount');
    mkdirSync(mount);
    harness.defer(() => cleanupMount(mount));
    const broken = 'process.on("SIGUSR2", () => { throw new Error("broken on purpose"); })';
    const memtap = await startChild({
      name: 'memtap',
      v8Flags: ['--import', `data:text/javascript,${encodeURIComponent(broken)}`],
      script: new URL('../src/memtap/main.ts', import.meta.url),
      args: ['--control', harness.path('breaks.control'), '--mount', mount, '--ram-bytes', '1048576'],
      logPath: harness.path('breaks.log'),
    });
    const { done } = harness.startFaults([join(mount, 'ram'), SEED, 'dense', 'seq', 16]);
    const asked = await MemtapProcess.attachTo({
      ...{ pid: memtap.pid, controlPath: harness.path('breaks.control'), mountPath: mount },
    });
    // it has no source, so that they wait
    await expect
      .poll(async () => (await asked.stats()).heldReads, { timeout: AT_ONCE_MS })
      .toBeGreaterThan(0);
    asked.detach();
    process.kill(memtap.pid, 'SIGUSR2');
    expect(await memtap.exited).toEqual({ code: null, signal: 'SIGKILL' });
    expect(await done).toMatchObject({ code: SIGBUS_EXIT });
    expect(readFileSync(harness.path('breaks.log'), 'utf8')).toMatch(/it broke, and ends: Error: broken on/);
  });

  it('reads everything right over connections that are cut again and again in the midst of frames', async () => {
    const { proxy, memtap } = await proxied();
    proxy.faults = { cutAfterBytes: 1_000_003, reset: true };
    const clients = ['rand', 'seq'].map(async (mode) =>
      harness.faults([memtap.ramPath, SEED, 'dense', mode, PAGES]),
    );
    for (const result of await Promise.all(clients)) expect(result).toMatchObject({ pages: PAGES, wrong: 0 });
    expect((await memtap.stats()).reconnects).toBeGreaterThan(10);
  });

  it('reads everything right from a source that delays, and goes on after an outage', async () => {
    const { proxy, memtap } = await proxied();
    proxy.faults = { delayMs: 5 };
    const running = harness.faults([memtap.ramPath, SEED, 'dense', 'rand', 300]);
    await reads(memtap);
    proxy.faults = { refusing: true };
    proxy.cutAll();
    await sleep(1000);
    proxy.faults = {};
    expect(await running).toMatchObject({ wrong: 0 });
    expect(await memtap.stats()).toMatchObject({ sourceLost: null });
  });

  it('gives up a source that stalls, and one that sends garbage, and says so', async () => {
    for (const faults of [{ stalled: true }, { garble: true }]) {
      const { proxy, memtap, lost } = await proxied({ sourceTimeoutMs: 1500 });
      await harness.faults([memtap.ramPath, SEED, 'dense', 'rand', 50]);
      proxy.faults = faults;
      const { code } = await harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES]).done;
      expect(code).toBe(SIGBUS_EXIT);
      expect(await lost).toMatch(/no source could be reached/);
      expect((await memtap.stats()).sourceLost).toBe(await lost);
    }
  });

  it('gives no page to a peer with another key', async () => {
    const { memserver, memtap, lost } = await proxied({ sourceTimeoutMs: 1000, memtapKey: randomBytes(32) });
    const { code } = await harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', 1]).done;
    expect(code).toBe(SIGBUS_EXIT);
    await lost;
    const stats = await memserver.stats();
    expect(stats.failedHandshakes).toBeGreaterThan(0);
    expect(stats).toMatchObject({ requests: 0, sentBytes: 0 });
  });

  it('tells of a killed memserver; the frozen process goes with it', async () => {
    const { memserver, source, memtap, lost } = await proxied({ sourceTimeoutMs: 1000 });
    const gone = new Promise((resolve) => source.child.once('exit', resolve));
    const running = harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES]);
    await reads(memtap);
    process.kill(memserver.pid, 'SIGKILL');
    expect(await gone).toBe(0);
    // whatever it had mapped it keeps; the rest is gone
    expect((await running.done).code).toBe(SIGBUS_EXIT);
    await lost;
  });

  it('tells of a killed frozen process at once', async () => {
    const { memserver, source, memtap, lost } = await proxied({ sourceTimeoutMs: 60_000 });
    const serverLost = new Promise<string>((resolve) =>
      memserver.onSourceLost(({ reason }) => resolve(reason)),
    );
    await harness.faults([memtap.ramPath, SEED, 'dense', 'rand', 10]);
    source.child.kill('SIGKILL');
    expect(await serverLost).toContain(String(source.pid));
    const { code } = await harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES]).done;
    expect(code).toBe(SIGBUS_EXIT);
    expect(await lost).toContain('sourceLost');
  });

  it('ends readers of a killed memtap, and its mount can be cleaned up', async () => {
    const { proxy, memtap } = await proxied();
    proxy.faults = { delayMs: 20 };
    const running = harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES]);
    await reads(memtap);
    process.kill(memtap.pid, 'SIGKILL');
    await memtap.exited;
    expect((await running.done).code).toBe(SIGBUS_EXIT);
    expect(isMounted(memtap.mountPath)).toBe(true);
    await cleanupMount(memtap.mountPath);
    expect(isMounted(memtap.mountPath)).toBe(false);
  });

  it('lets a reader be killed in the midst of a fault, at once, and serves the page to the next', async () => {
    const { proxy, memtap } = await proxied({ sourceTimeoutMs: 60_000 });
    await harness.faults([memtap.ramPath, SEED, 'dense', 'rand', 10]);
    proxy.faults = { stalled: true };
    const readers = [1, 2, 3].map((order) =>
      harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES, `order=${order}`]),
    );
    await expect.poll(async () => (await memtap.stats()).heldReads).toBe(3);
    // first a signal that it would handle: it must go on waiting, and the kernel tells of no second signal
    readers[0]?.child.kill('SIGBUS');
    await sleep(100);
    expect((await memtap.stats()).heldReads).toBe(3);
    const started = performance.now();
    for (const reader of readers) reader.child.kill('SIGKILL');
    for (const reader of readers) expect(await reader.done).toMatchObject({ signal: 'SIGKILL' });
    expect(performance.now() - started).toBeLessThan(AT_ONCE_MS);
    proxy.faults = {};
    proxy.cutAll();
    expect(await harness.faults([memtap.ramPath, SEED, 'dense', 'rand', PAGES])).toMatchObject({ wrong: 0 });
  });

  it('stops at once while readers wait', async () => {
    const { proxy, memtap } = await proxied({ sourceTimeoutMs: 60_000 });
    proxy.faults = { stalled: true };
    proxy.cutAll();
    const reader = harness.startFaults([memtap.ramPath, SEED, 'dense', 'rand', PAGES]);
    await expect.poll(async () => (await memtap.stats()).heldReads).toBe(1);
    const started = performance.now();
    await memtap.stop();
    expect(performance.now() - started).toBeLessThan(AT_ONCE_MS);
    expect((await reader.done).code).toBe(SIGBUS_EXIT);
    expect(isMounted(memtap.mountPath)).toBe(false);
  });
});
