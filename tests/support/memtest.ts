// Forks of a master VM whose memory is full of a known pattern. Each clone reads all of it as soon as it runs, so that it
// faults for seconds, and then says whether any byte was wrong.

import { expect } from 'vitest';
import { eventually } from './deadline.ts';
import { DetachedProgram } from './detached-program.ts';
import { PROBES, type Guest, type GuestProgram } from './guest.ts';
import type { TestLab } from './test-lab.ts';

const FORK_MS = 60_000;
/** All pages over the network, checked, rewritten and checked again, under emulation. */
const CHECK_MS = 90_000;

export class MemoryTest implements AsyncDisposable {
  readonly #lab: TestLab;
  readonly #master: Guest;
  readonly #program: GuestProgram | DetachedProgram;
  readonly #pages: number;

  private constructor(parts: {
    lab: TestLab;
    master: Guest;
    program: GuestProgram | DetachedProgram;
    areaMib: number;
  }) {
    this.#lab = parts.lab;
    this.#master = parts.master;
    this.#program = parts.program;
    this.#pages = parts.areaMib * 256;
  }

  /** `writer`: another area, a quarter as large, is rewritten all the while. `detached`: it outlives the daemons. */
  static async start(
    lab: TestLab,
    master: Guest,
    { areaMib, writer = false, detached = false }: { areaMib: number; writer?: boolean; detached?: boolean },
  ): Promise<MemoryTest> {
    const argv = [`${PROBES}/sfmemtest`, ...(writer ? ['--writer'] : []), String(areaMib), '77'];
    const program = await (detached ? DetachedProgram.start(master, argv) : master.start(argv));
    expect(await program.line()).toBe('filled');
    return new MemoryTest({ lab, master, program, areaMib });
  }

  /** Its copy in a VM that goes on where this one was: of a detached one, which has not been told anything since. */
  in(guest: Guest): MemoryTest {
    const program = this.#program;
    if (!(program instanceof DetachedProgram)) throw new Error('it went with its connection');
    return new MemoryTest({
      ...{ lab: this.#lab, master: guest, program: program.in(guest), areaMib: this.#pages / 256 },
    });
  }

  /** Forks; the master VM has checked its own memory when this returns. Clones may be fewer than asked for. */
  async fork(count: number): Promise<{ ticket: string; clones: Guest[] }> {
    const answer = await this.#program.ask(`clone ${count}`, FORK_MS);
    expect(answer).toMatch(/^master wrong=0 ticket=\S+( torn=0)?$/);
    const ticket = /ticket=(\S+)/.exec(answer)?.[1] ?? '';
    const clones = await this.#lab.clonesOf(this.#master, ticket);
    return { ticket, clones: clones.map(({ vmid }) => this.#master.sibling(vmid)) };
  }

  /** Forks `count` clones, which fork as many, and so on `depth` deep. Resolves when all of them have checked their memory: none was wrong. */
  async tree(count: number, depth: number): Promise<{ ticket: string; clones: Guest[] }> {
    const answer = await this.#program.ask(`tree ${count} ${depth}`, FORK_MS);
    expect(answer).toMatch(/^master wrong=0 ticket=\S+( torn=0)?$/);
    const ticket = /ticket=(\S+)/.exec(answer)?.[1] ?? '';
    const clones = await this.#below(ticket, depth);
    return { ticket, clones };
  }

  async #below(ticket: string, depth: number): Promise<Guest[]> {
    const placed = await this.#lab.clonesOf(this.#master, ticket);
    const clones = placed.map(({ vmid }) => this.#master.sibling(vmid));
    const all = clones.map(async (clone) => {
      await this.expectRight(clone);
      if (depth === 1) return [clone];
      const said = await clone.file(`/run/sfmemtest.${clone.vmid}.forked`, CHECK_MS);
      expect(said).toMatch(new RegExp(`^${clone.vmid} wrong=0 ticket=\\S+( torn=0)?$`));
      return [clone, ...(await this.#below(/ticket=(\S+)/.exec(said)?.[1] ?? '', depth - 1))];
    });
    return (await Promise.all(all)).flat();
  }

  /** Until the clone has checked and rewritten every page: none was wrong. */
  async expectRight(clone: Guest): Promise<void> {
    const path = `/run/sfmemtest.${clone.vmid}`;
    const told = await eventually(CHECK_MS, path, () => clone.run(['cat', path]));
    expect(told.replace(/ torn=0$/, '')).toBe(`${clone.vmid} wrong=0 pages=${this.#pages}`);
  }

  async merge(ticket: string): Promise<void> {
    expect(await this.#program.ask(`merge ${ticket}`, FORK_MS)).toBe(`merged ${ticket}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#program[Symbol.asyncDispose]();
  }
}
