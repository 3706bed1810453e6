// The router of a cluster: a process of its own, in the host's namespace, that holds a namespace which routes, filters and translates for
// the cluster. What is in the kernel goes with it, so a cluster whose router has ended is closed.
//
//   started ─▶ namespace, links, rules that let nothing pass ─▶ {"ready":true} ─▶ settings, as often as they come      SIGTERM ─▶ gone
//
// Invariants: rules are replaced whole, one change at a time (#queue); what the name server answers with can be reached when it does.

import { readFile } from 'node:fs/promises';
import { guestIp, SnowflockError, toSnowflockError, type RouterSettings } from '@snowflock/protocol';
import { runBatch } from '../run.ts';
import { uplinkName, routerLinkName } from '../names.ts';
import { removeLinkCommand } from '../commands.ts';
import { serveSettings } from './control.ts';
import { DNS_CODE, readQuestion, writeAnswer, type DnsQuestion } from './dns-message.ts';
import { answerFor } from './name-server.ts';
import { NamedAddresses, type Named } from './named-addresses.ts';
import { RouterNamespace } from './namespace.ts';
import {
  capCommands,
  namedRules,
  routerInsideCommands,
  routerLinkCommands,
  routerRules,
  whitelistParts,
} from './rules.ts';
import { askUpstream, nameserversOf } from './upstream.ts';

/** Questions of guests that wait for a name server outside. */
const FORWARDED_MAX = 64;
/** Nobody listens there (RFC 863). */
const DISCARD_PORT = 9;
const CLUSTER_BROADCAST = '10.0.255.255';
const RESOLV_CONF = '/etc/resolv.conf';
const CLOSED: RouterSettings = { whitelist: [], capMbit: null, nameservers: [], exposed: [] };

class Router {
  readonly #clusterid: number;
  readonly #namespace: RouterNamespace;
  readonly #names = new NamedAddresses({
    ask: (message, question) => this.#ask(message, question),
    onAddresses: (named) => this.#allow(named),
    onFailure: (name, error) =>
      this.#say('warn', `${name} on the whitelist: ${toSnowflockError(error).message}`),
  });
  #settings = CLOSED;
  #forwarded = 0;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(clusterid: number, namespace: RouterNamespace) {
    this.#clusterid = clusterid;
    this.#namespace = namespace;
    namespace.socket.on('message', (message, from) => {
      void this.#serve(message, (answer) => namespace.socket.send(answer, from.port, from.address));
    });
    namespace.socket.on('error', (error) => this.#say('error', `name server: ${error.message}`));
  }

  /** Rules before links: nothing passes that they have not seen. */
  async start(): Promise<void> {
    const { run, path } = { run: this.#namespace.run.bind(this.#namespace), path: this.#namespace.path };
    const id = this.#clusterid;
    await this.#applyRules();
    const stale = [routerLinkName(id), uplinkName(id)].map(removeLinkCommand);
    await runBatch('ip', stale, { force: true });
    await runBatch('ip', routerLinkCommands(id, path));
    await run(['ip', '-batch', '-'], routerInsideCommands(id).join('\n'));
    // All bridges learn where it is now: another one may have been on another host.
    const { socket } = this.#namespace;
    socket.setBroadcast(true);
    socket.send('', DISCARD_PORT, CLUSTER_BROADCAST);
  }

  /** Resolves when they are in force; names are looked up meanwhile. */
  async set(settings: RouterSettings): Promise<void> {
    const isNewCap = settings.capMbit !== this.#settings.capMbit;
    this.#settings = settings;
    void this.#names.setNames(whitelistParts(settings.whitelist).names);
    await this.#applyRules();
    if (isNewCap)
      await this.#exclusive(() =>
        this.#namespace.run(['tc', '-batch', '-'], capCommands(this.#settings.capMbit).join('\n')),
      );
  }

  #applyRules(): Promise<void> {
    return this.#exclusive(() => {
      const { whitelist, exposed } = this.#settings;
      const rules = routerRules({
        addresses: whitelistParts(whitelist).addresses,
        named: this.#names.current,
        exposed: exposed.map(({ vmid, port, hostPort }) => ({ ip: guestIp(vmid), port, hostPort })),
      });
      return this.#namespace.run(['nft', '-f', '-'], rules);
    });
  }

  #allow(named: readonly Named[]): Promise<void> {
    return this.#exclusive(() => this.#namespace.run(['nft', '-f', '-'], namedRules(named)));
  }

  async #ask(message: Buffer, question: DnsQuestion): Promise<Buffer> {
    const { nameservers } = this.#settings;
    const servers = nameservers.length > 0 ? nameservers : nameserversOf(await readFile(RESOLV_CONF, 'utf8'));
    return askUpstream(message, question, servers);
  }

  async #serve(message: Buffer, reply: (answer: Buffer) => void): Promise<void> {
    const question = readQuestion(message);
    if (!question) return;
    const verdict = answerFor(question, {
      clusterid: this.#clusterid,
      isWhitelisted: (name) => this.#names.has(name),
    });
    if (verdict.kind === 'answer') return reply(verdict.message);
    if (this.#forwarded >= FORWARDED_MAX) return reply(writeAnswer(question, DNS_CODE.serverFailure));
    this.#forwarded += 1;
    try {
      const answer = await this.#ask(message, question);
      await this.#names.learn(answer);
      reply(answer);
    } catch {
      reply(writeAnswer(question, DNS_CODE.serverFailure));
    } finally {
      this.#forwarded -= 1;
    }
  }

  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => undefined); // the caller's
    return result;
  }

  #say(level: 'warn' | 'error', msg: string): void {
    const time = new Date().toISOString();
    const line = { level, time, name: 'router', pid: process.pid, clusterid: this.#clusterid, msg };
    process.stderr.write(`${JSON.stringify(line)}\n`);
  }
}

const [clusterid, controlPath] = [Number(process.argv[2]), process.argv[3]];
if (!Number.isInteger(clusterid) || controlPath === undefined)
  throw new SnowflockError('bad-request', 'usage: router CLUSTERID CONTROL_SOCKET');
process.on('SIGTERM', () => process.exit(0));
const router = new Router(clusterid, await RouterNamespace.make());
await router.start();
await serveSettings(controlPath, (settings) => router.set(settings));
process.stdout.write('{"ready":true}\n');
