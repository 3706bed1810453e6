// SnowFlock for programs inside a VM: the user domain API (manual, section 5) for Node 20 and later, without dependencies. Types are in
// snowflock.d.mts, which `npm run docs` makes of the comments here.
//
// Each call is one connection to the agent's socket, one line out and one line back, bytes behind some (docs/guest-channel.md); calls
// do not disturb one another. Every failure is a SnowflockError. Aborting the signal of a call closes its connection, which cancels it.

import { bytesSource, exchange, fileSource, nonsense, shown, SnowflockError } from './connection.mjs';

export { SnowflockError };

/** A UUID. */
const TICKET_MAX = 36;
const COUNT_MAX = 0x7fffffff;
const LIMIT_MAX = 10 ** 15;

/**
 * @typedef {object} CallOptions
 * @property {AbortSignal | undefined} [signal] Cancels the call when it aborts: it fails with the code `interrupted`.
 */
/**
 * @typedef {object} RequestOptions
 * @property {boolean | undefined} [procs] Count processors, not clones. By default false.
 * @property {number | undefined} [min] From 0 on: any number between min and the one asked for will do. By default -1: all of them.
 * @property {boolean | undefined} [block] Wait until they are there. By default true; else returns at once with what there is, maybe nothing.
 */
/**
 * @typedef {object} TicketResult
 * @property {string | null} ticket null when nothing was granted.
 * @property {number} allowedClones How many were granted.
 */
/**
 * @typedef {object} CloneResult
 * @property {number} nclones How many clones there are.
 * @property {number} vmid Which VM this is: 0 is the one that forked.
 */
/**
 * @typedef {object} CloneInfo
 * @property {number} vmid
 * @property {number} processors
 */
/**
 * @typedef {object} TicketLists
 * @property {string[]} unused Requested, not yet cloned.
 * @property {string[]} outstanding Cloned, not yet joined or merged.
 */
/**
 * @typedef {object} Identity
 * @property {number} clusterid
 * @property {number} vmid
 */

/**
 * How a clone exits.
 * @typedef {object} ExitOptions
 * @property {number | undefined} [status] A whole number of 32 bits, by default 0.
 * @property {Uint8Array | undefined} [result] Bytes for whoever joins it.
 * @property {string | undefined} [resultFile] A file whose contents are the result.
 */
/**
 * When to wait no longer; clones that still run then are ended. By default never.
 * @typedef {object} JoinOptions
 * @property {number | undefined} [count] When so many have exited.
 * @property {number | undefined} [deadline] So many seconds after the call.
 * @property {number | undefined} [budgetSeconds] When they have run for so many seconds together, since the fork.
 * @property {number | undefined} [budgetBytes] When they have returned results of so many bytes together.
 */
/**
 * How a clone ended.
 * @typedef {object} Outcome
 * @property {number} vmid
 * @property {'exited' | 'ended' | 'lost'} how `exited` by icExit; `ended` by a join that had enough, or its guest powered itself off; or `lost`.
 * @property {number | null} status That of icExit; null unless exited.
 * @property {string} reason For people.
 * @property {Buffer} result What it returned; empty if nothing.
 */

/**
 * Reserves resources for `nclones` clones, or for that many processors, spread over clones, with `procs`.
 * @param {number} nclones
 * @param {RequestOptions & CallOptions} [options]
 * @returns {Promise<TicketResult>}
 */
export async function requestCloneTicket(nclones, options = {}) {
  const { procs = false, min = -1, block = true, signal } = options;
  const words = ['request_clone_ticket', count('nclones', nclones), flag('procs', procs), count('min', min)];
  const reply = await call([...words, flag('block', block)], signal);
  const [allowed, ticket] = [wholeNumber(reply[0]), reply[1]];
  if (reply.length !== 2 || ticket === undefined) throw nonsense();
  return { ticket: allowed > 0 ? ticket : null, allowedClones: allowed };
}

/**
 * requestCloneTicket for `nclones` clones as large as this VM; waits for them.
 * @param {number} nclones
 * @param {CallOptions} [options]
 * @returns {Promise<TicketResult>}
 */
export async function requestVmTicket(nclones, { signal } = {}) {
  return requestCloneTicket(nclones, { signal });
}

/**
 * requestCloneTicket for `nprocs` processors, spread over clones; waits for them.
 * @param {number} nprocs
 * @param {CallOptions} [options]
 * @returns {Promise<TicketResult>}
 */
export async function requestProcTicket(nprocs, { signal } = {}) {
  return requestCloneTicket(nprocs, { procs: true, signal });
}

/**
 * The tickets in flight.
 * @param {CallOptions} [options]
 * @returns {Promise<TicketLists>}
 */
export async function listTickets({ signal } = {}) {
  /** @type {TicketLists} */
  const lists = { unused: [], outstanding: [] };
  /** @type {string[] | undefined} */
  let into;
  for (const word of await call(['list_tickets'], signal)) {
    if (word === 'unused' || word === 'outstanding') into = lists[word];
    else if (into === undefined) throw nonsense();
    else into.push(word);
  }
  return lists;
}

/**
 * Forks this VM. Resolves in the VM that called and in every clone: look at `vmid`. The generators of this process (`Math.random`,
 * `node:crypto`) cannot be seeded anew and draw the same numbers in all of them: in a clone read /dev/urandom, or start a process for it
 * (docs/identity.md). `seed` tells the guest's hooks whether their generators are to be `fresh`, as by default, or the `same`.
 * @param {string} ticket
 * @param {{ seed?: 'fresh' | 'same' | undefined } & CallOptions} [options]
 * @returns {Promise<CloneResult>}
 */
export async function cloneMaster(ticket, { seed = 'fresh', signal } = {}) {
  if (seed !== 'fresh' && seed !== 'same')
    throw new SnowflockError('bad-request', `seed is 'fresh' or 'same', not ${shown(seed)}`);
  const reply = await call(['clone_master', ticketWord(ticket), ...(seed === 'same' ? [seed] : [])], signal);
  if (reply.length !== 2) throw nonsense();
  return { nclones: wholeNumber(reply[0]), vmid: wholeNumber(reply[1]) };
}

/**
 * Gives an unused ticket back.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function disposeTicket(ticket, { signal } = {}) {
  await call(['dispose_ticket', ticketWord(ticket)], signal);
}

/**
 * Destroys the clone that calls; does not resolve. Whoever joins it gets the status and the result. When this fails the clone runs
 * on, and may exit in another way (`result-too-large`: with less).
 * @param {ExitOptions & CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function icExit({ status = 0, result, resultFile, signal } = {}) {
  count('status', status, -COUNT_MAX - 1);
  if (result !== undefined && resultFile !== undefined)
    throw new SnowflockError('bad-request', 'give result or resultFile, not both');
  const source = resultFile === undefined ? bytesSource(result) : await fileSource(resultFile);
  try {
    const announced = source.sizeBytes > 0 ? [`+${source.sizeBytes}`] : [];
    const words = status !== 0 || announced.length > 0 ? [status, ...announced] : [];
    await exchange(['ic_exit', ...words], signal, { source });
  } finally {
    await source.close();
  }
}

/**
 * Waits until all clones of the ticket have called icExit.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function icJoin(ticket, { signal } = {}) {
  await call(['ic_join', ticketWord(ticket)], signal);
}

/**
 * Waits until all clones of the ticket have ended, or earlier as the options say, and tells how each did, by its vmid. The ticket is
 * merged then. When this fails nothing is lost, and it may be tried again, unless the ticket was joined or merged before.
 * @param {string} ticket
 * @param {JoinOptions & CallOptions} [options]
 * @returns {Promise<Map<number, Outcome>>}
 */
export async function join(ticket, { count: enough, deadline, budgetSeconds, budgetBytes, signal } = {}) {
  const seconds = 1000;
  const limits = [
    limit('count', enough, 1),
    limit('deadline', deadline, seconds),
    limit('budgetSeconds', budgetSeconds, seconds),
    limit('budgetBytes', budgetBytes, 1),
  ];
  const outcomes = await exchange(['wait_clones', ticketWord(ticket), ...limits], signal, {
    read: readOutcomes,
  });
  await mergeMaster(ticket); // only now, so that nothing is lost if this program is
  return outcomes;
}

/**
 * The same as mergeMaster.
 * @param {string | null} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function icKill(ticket, { signal } = {}) {
  await call(['ic_kill', ticketOrAll(ticket)], signal);
}

/**
 * Destroys all clones of the ticket, of all tickets if it is null.
 * @param {string | null} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function mergeMaster(ticket, { signal } = {}) {
  await call(['merge_master', ticketOrAll(ticket)], signal);
}

/**
 * Puts a clone back to the instant of its fork: cloneMaster returns in it once more, with the same vmid, and what it has done since is
 * gone from its memory and its disk. A VM may reset the clones that it has forked and, when it is a clone, itself: then this does not
 * return.
 * @param {number} vmid
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function resetClone(vmid, { signal } = {}) {
  await call(['reset_clone', count('vmid', vmid)], signal);
}

/**
 * mergeMaster(null).
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function mergeAll({ signal } = {}) {
  await call(['merge_master', '*'], signal);
}

/**
 * The ticket's clones, with their numbers of processors.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<CloneInfo[]>}
 */
export async function readTicketInfo(ticket, { signal } = {}) {
  const reply = await call(['read_ticket_info', ticketWord(ticket)], signal);
  if (reply.length === 0) throw nonsense();
  return reply.slice(1).map((word) => {
    const [vmid, processors, ...rest] = word.split(':');
    if (rest.length > 0) throw nonsense();
    return { vmid: wholeNumber(vmid), processors: wholeNumber(processors) };
  });
}

/**
 * Shuts the master VM down, if no ticket is outstanding.
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export async function shutdownCluster({ signal } = {}) {
  await call(['shutdown_cluster'], signal);
}

/**
 * Which VM this is.
 * @param {CallOptions} [options]
 * @returns {Promise<Identity>}
 */
export async function whoami({ signal } = {}) {
  const reply = await call(['whoami'], signal);
  if (reply.length !== 2) throw nonsense();
  return { clusterid: wholeNumber(reply[0]), vmid: wholeNumber(reply[1]) };
}

/**
 * A call without bytes: the words after 'ok'.
 * @param {(string | number)[]} words
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<string[]>}
 */
function call(words, signal) {
  return exchange(words, signal, {});
}

/**
 * @param {string[]} words
 * @param {import('./connection.mjs').Reader} reader
 */
async function readOutcomes(words, reader) {
  /** @type {Map<number, Outcome>} */
  const outcomes = new Map();
  if (words.length !== 2) throw nonsense();
  for (let left = wholeNumber(words[0]); left > 0; left -= 1) {
    const [id, how, status, size, ...reason] = (await reader.line()).split(' ');
    if (how !== 'exited' && how !== 'ended' && how !== 'lost') throw nonsense();
    const vmid = wholeNumber(id);
    const [code, result] = [wholeNumber(status), await reader.bytes(wholeNumber(size))];
    outcomes.set(vmid, {
      vmid,
      how,
      status: how === 'exited' ? code : null,
      reason: reason.join(' '),
      result,
    });
  }
  return outcomes;
}

/** @param {string | undefined} word */
function wholeNumber(word) {
  if (word === undefined || !/^-?\d{1,10}$/.test(word)) throw nonsense();
  return Number(word);
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {number} [least]
 */
function count(name, value, least = -COUNT_MAX) {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < least || value > COUNT_MAX)
    throw new SnowflockError('bad-request', `${name} must be a whole number, not ${shown(value)}`);
  return value;
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {number} scale 1000: seconds, told in ms.
 */
function limit(name, value, scale) {
  if (value === undefined) return '-';
  const whole = scale === 1;
  if (
    typeof value === 'number' &&
    value >= 0 &&
    value * scale <= LIMIT_MAX &&
    (!whole || (value > 0 && Number.isInteger(value)))
  )
    return String(Math.ceil(value * scale));
  const kind = whole ? 'a whole number of 1 or more' : 'a number of seconds, 0 or more';
  throw new SnowflockError('bad-request', `${name} must be ${kind}, not ${shown(value)}`);
}

/**
 * @param {string} name
 * @param {unknown} value
 */
function flag(name, value) {
  if (typeof value !== 'boolean')
    throw new SnowflockError('bad-request', `${name} must be true or false, not ${shown(value)}`);
  return value ? 1 : 0;
}

/** @param {unknown} ticket */
function ticketWord(ticket) {
  if (typeof ticket !== 'string' || ticket.length > TICKET_MAX || !/^[!-~]+$/.test(ticket))
    throw new SnowflockError('bad-request', `not a ticket: ${shown(ticket)}`);
  return ticket;
}

/** @param {unknown} ticket */
function ticketOrAll(ticket) {
  return ticket === null || ticket === '' ? '*' : ticketWord(ticket);
}
