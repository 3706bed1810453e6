// A lifecycle: what becomes of a master VM and of all that is made of it, a step at a time, in a lab; and what each VM must then hold.
//
// Every VM holds the same stripes, in memory (a file of a tmpfs) and on its disk, each full of the pattern of one seed. The first stripe is
// as the master VM wrote it at the beginning. After each step every VM that there is writes another stripe, all of them the same
// one, with a seed that nobody else has: so what one VM writes, and another should not see, lies where the other would see it.

import { expect } from 'vitest';
import { Draws } from './draws.ts';
import { eventually } from './deadline.ts';
import type { Guest } from './guest.ts';
import type { TestLab } from './test-lab.ts';

const STRIPES = 4;
const STRIPE_PAGES = 256;
const PATHS = { memory: '/run/stripe', disk: '/disk/stripe' } as const;
export type Where = keyof typeof PATHS;
/** No load to speak of, and often enough: without its fork's seed a VM would draw for seconds what others draw. */
const DRAW_US = 30_000;
const STEP_MS = 60_000;
/** Memory that is fetched from another host, and the end of whatever is no longer needed then. */
const SETTLE_MS = 20_000;
/** The VM with which a lifecycle begins. */
export const MASTER = 'master';

/** VMs have names of their own here, which are theirs also when the call is over that gave them a vmid. */
export type Step =
  | { readonly do: 'fork'; readonly vm: string; readonly into: readonly string[] }
  | { readonly do: 'migrate' | 'reset' | 'crash'; readonly vm: string }
  | { readonly do: 'checkpoint'; readonly vm: string; readonly as: string }
  | { readonly do: 'clone checkpoint'; readonly from: string; readonly into: string }
  /** By the VM that forked them: of the ticket that `clones` are the clones of. */
  | { readonly do: 'join' | 'kill' | 'merge'; readonly clones: readonly string[] };

/** The seed of each stripe. */
type Contents = Readonly<Record<Where, readonly number[]>>;

export interface Ticket {
  readonly id: string;
  readonly owner: Guest;
  /** Host that keeps the memory of the fork until the ticket is over. */
  readonly host: string;
  /** Hosts of clones that have ended: what these held is free when the ticket is over (docs/configuration.md). */
  readonly ended: string[];
}

interface LiveVm {
  readonly guest: Guest;
  readonly contents: Contents;
  /** Of a clone. */
  readonly fork?: { readonly ticket: Ticket; readonly contents: Contents };
}

export class Lifecycle {
  readonly lab: TestLab;
  /** Numbers that were drawn in VMs before a step put them back. */
  readonly draws = new Draws();
  /** Tickets that are over, and must have left nothing. */
  readonly over: string[] = [];
  /** Those that are outstanding. */
  readonly tickets = new Set<Ticket>();
  readonly #vms = new Map<string, LiveVm>();
  readonly #checkpoints = new Map<string, Contents>();
  #seeds = 0;
  #rounds = 0;

  private constructor(lab: TestLab) {
    this.lab = lab;
  }

  /** `vmtest`: the program of tests/support/guest. */
  static async run(lab: TestLab, vmtest: Buffer, steps: readonly Step[]): Promise<Lifecycle> {
    const lifecycle = new Lifecycle(lab);
    const guest = await lab.seed();
    await guest.put('/tmp/vmtest', vmtest);
    lifecycle.#vms.set(MASTER, { guest, contents: { memory: [], disk: [] } });
    await lifecycle.#write(MASTER, [...Array(STRIPES).keys()]);
    await Draws.begin(guest, DRAW_US);
    for (const step of steps) {
      await lifecycle.#take(step);
      await lifecycle.#writeAll();
    }
    return lifecycle;
  }

  /** The VMs that there are. */
  get vms(): Guest[] {
    return [...this.#vms.values()].map(({ guest }) => guest);
  }

  /** Each VM has in each stripe what it must have there, read from its memory, or from its disk and not from memory. */
  async expectContents(where: Where): Promise<void> {
    const right = Array<string>(STRIPES).fill(`pages=${STRIPE_PAGES} wrong=0`);
    await Promise.all(
      [...this.#vms].map(async ([name, { guest, contents }]) => {
        const files = contents[where].flatMap((seed, stripe) => [`${PATHS[where]}.${stripe}`, seed]);
        const script = `echo 3 > /proc/sys/vm/drop_caches; /tmp/vmtest compare ${files.join(' ')}`;
        const said = await guest.sh(script);
        expect(said.split('\n'), `${where} of ${name}, VM ${guest.name}`).toEqual(right);
      }),
    );
  }

  /** Every VM writes to the same stripe. */
  async #writeAll(): Promise<void> {
    const stripe = 1 + (this.#rounds++ % (STRIPES - 1));
    await Promise.all([...this.#vms.keys()].map((name) => this.#write(name, [stripe])));
  }

  async #write(name: string, stripes: readonly number[]): Promise<void> {
    const vm = this.#vm(name);
    const contents = { memory: [...vm.contents.memory], disk: [...vm.contents.disk] };
    const argv = ['/tmp/vmtest', 'fill', String(STRIPE_PAGES)];
    for (const where of ['memory', 'disk'] as const)
      for (const stripe of stripes) {
        const seed = ++this.#seeds;
        contents[where][stripe] = seed;
        argv.push(`${PATHS[where]}.${stripe}`, String(seed));
      }
    await vm.guest.run(argv);
    this.#vms.set(name, { ...vm, contents });
  }

  #vm(name: string): LiveVm {
    const vm = this.#vms.get(name);
    if (!vm) throw new Error(`there is no VM '${name}'`);
    return vm;
  }

  async #take(step: Step): Promise<void> {
    switch (step.do) {
      case 'fork':
        return this.#fork(step.vm, step.into);
      case 'migrate':
        return this.#migrate(this.#vm(step.vm).guest);
      case 'reset':
        return this.#reset(step.vm);
      case 'crash':
        return this.#crash(step.vm);
      case 'checkpoint':
        await this.#command('checkpoint', 'create', this.#vm(step.vm).guest.name, step.as);
        this.#checkpoints.set(step.as, this.#vm(step.vm).contents);
        return;
      case 'clone checkpoint': {
        const contents = this.#checkpoints.get(step.from);
        if (!contents) throw new Error(`there is no checkpoint '${step.from}'`);
        this.#vms.set(step.into, { guest: await this.lab.seedFrom(step.from), contents });
        return;
      }
      case 'join':
      case 'kill':
      case 'merge':
        return this.#end(step.do, step.clones);
      default:
        step satisfies never;
    }
  }

  async #fork(name: string, into: readonly string[]): Promise<void> {
    const { guest, contents } = this.#vm(name);
    const host = (await this.lab.vm(guest))?.host ?? '';
    const { ticket, clones } = await this.lab.fork(guest, into.length);
    expect(clones).toHaveLength(into.length);
    const fork = { ticket: { id: ticket, owner: guest, host, ended: [] }, contents };
    this.tickets.add(fork.ticket);
    for (const [index, clone] of clones.entries())
      this.#vms.set(into[index] ?? '', { guest: clone, contents, fork });
  }

  async #migrate(guest: Guest): Promise<void> {
    const from = await this.lab.hostOf(guest);
    const to = this.lab.lab.hosts.find(({ k }) => k !== from);
    if (!to) throw new Error('there is no other host');
    await this.#command('migrate', guest.name, to.name);
    expect(await this.lab.hostOf(guest)).toBe(to.k);
  }

  async #reset(name: string): Promise<void> {
    const { guest, fork } = this.#vm(name);
    if (!fork) throw new Error(`'${name}' was not forked`);
    await this.draws.addThoseOf(guest);
    await this.#command('reset', guest.name);
    this.#vms.set(name, { guest, fork, contents: fork.contents });
  }

  /** Its QEMU is killed; its ticket is outstanding all the same. */
  async #crash(name: string): Promise<void> {
    const { guest, fork } = this.#vm(name);
    const k = await this.lab.hostOf(guest);
    const running = await this.lab.clonesOn(k, guest.clusterid);
    process.kill(running.find(({ vmid }) => vmid === guest.vmid)?.pid ?? Number.NaN, 'SIGKILL');
    await this.lab.endOf(guest, 'lost', STEP_MS);
    fork?.ticket.ended.push(this.lab.lab.hosts[k - 1]?.name ?? '');
    this.#vms.delete(name);
  }

  async #end(how: 'join' | 'kill' | 'merge', names: readonly string[]): Promise<void> {
    const clones = names.map((name) => this.#vm(name));
    const ticket = clones[0]?.fork?.ticket;
    if (!ticket || clones.some(({ fork }) => fork?.ticket !== ticket)) throw new Error('not of one ticket');
    if (how === 'join')
      // the connection goes with the VM
      for (const { guest } of clones) await guest.exec(['sfexit']).catch(() => undefined);
    const call = { join: 'ic_join', kill: 'ic_kill', merge: 'merge_master' }[how];
    const argv = ['/tmp/vmtest', 'call', call, ticket.id];
    expect(await ticket.owner.run(argv, { deadlineMs: STEP_MS })).toBe('ok');
    for (const name of names) this.#vms.delete(name);
    this.tickets.delete(ticket);
    this.over.push(ticket.id);
  }

  /** Of the host. */
  async #command(...args: string[]): Promise<void> {
    const { status, err } = await this.lab.command('snowflock', args, { deadlineMs: STEP_MS });
    expect({ args, status, err }).toEqual({ args, status: 0, err: '' });
  }
}

/** Until it is so: VMs end in the background, and what is fetched from another host lets go of that later. */
export function settled(what: string, attempt: () => Promise<void>): Promise<void> {
  return eventually(SETTLE_MS, what, attempt);
}
