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
export function requestCloneTicket(nclones: number, options?: RequestOptions & CallOptions): Promise<TicketResult>;
/**
 * requestCloneTicket for `nclones` clones as large as this VM; waits for them.
 * @param {number} nclones
 * @param {CallOptions} [options]
 * @returns {Promise<TicketResult>}
 */
export function requestVmTicket(nclones: number, { signal }?: CallOptions): Promise<TicketResult>;
/**
 * requestCloneTicket for `nprocs` processors, spread over clones; waits for them.
 * @param {number} nprocs
 * @param {CallOptions} [options]
 * @returns {Promise<TicketResult>}
 */
export function requestProcTicket(nprocs: number, { signal }?: CallOptions): Promise<TicketResult>;
/**
 * The tickets in flight.
 * @param {CallOptions} [options]
 * @returns {Promise<TicketLists>}
 */
export function listTickets({ signal }?: CallOptions): Promise<TicketLists>;
/**
 * Forks this VM. Resolves in the VM that called and in every clone: look at `vmid`. The generators of this process (`Math.random`,
 * `node:crypto`) cannot be seeded anew and draw the same numbers in all of them: in a clone read /dev/urandom, or start a process for it
 * (docs/identity.md). `seed` tells the guest's hooks whether their generators are to be `fresh`, as by default, or the `same`.
 * @param {string} ticket
 * @param {{ seed?: 'fresh' | 'same' | undefined } & CallOptions} [options]
 * @returns {Promise<CloneResult>}
 */
export function cloneMaster(ticket: string, { seed, signal }?: {
    seed?: "fresh" | "same" | undefined;
} & CallOptions): Promise<CloneResult>;
/**
 * Gives an unused ticket back.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function disposeTicket(ticket: string, { signal }?: CallOptions): Promise<void>;
/**
 * Destroys the clone that calls; does not resolve. Whoever joins it gets the status and the result. When this fails the clone runs
 * on, and may exit in another way (`result-too-large`: with less).
 * @param {ExitOptions & CallOptions} [options]
 * @returns {Promise<void>}
 */
export function icExit({ status, result, resultFile, signal }?: ExitOptions & CallOptions): Promise<void>;
/**
 * Waits until all clones of the ticket have called icExit.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function icJoin(ticket: string, { signal }?: CallOptions): Promise<void>;
/**
 * Waits until all clones of the ticket have ended, or earlier as the options say, and tells how each did, by its vmid. The ticket is
 * merged then. When this fails nothing is lost, and it may be tried again, unless the ticket was joined or merged before.
 * @param {string} ticket
 * @param {JoinOptions & CallOptions} [options]
 * @returns {Promise<Map<number, Outcome>>}
 */
export function join(ticket: string, { count: enough, deadline, budgetSeconds, budgetBytes, signal }?: JoinOptions & CallOptions): Promise<Map<number, Outcome>>;
/**
 * The same as mergeMaster.
 * @param {string | null} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function icKill(ticket: string | null, { signal }?: CallOptions): Promise<void>;
/**
 * Destroys all clones of the ticket, of all tickets if it is null.
 * @param {string | null} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function mergeMaster(ticket: string | null, { signal }?: CallOptions): Promise<void>;
/**
 * Puts a clone back to the instant of its fork: cloneMaster returns in it once more, with the same vmid, and what it has done since is
 * gone from its memory and its disk. A VM may reset the clones that it has forked and, when it is a clone, itself: then this does not
 * return.
 * @param {number} vmid
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function resetClone(vmid: number, { signal }?: CallOptions): Promise<void>;
/**
 * mergeMaster(null).
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function mergeAll({ signal }?: CallOptions): Promise<void>;
/**
 * The ticket's clones, with their numbers of processors.
 * @param {string} ticket
 * @param {CallOptions} [options]
 * @returns {Promise<CloneInfo[]>}
 */
export function readTicketInfo(ticket: string, { signal }?: CallOptions): Promise<CloneInfo[]>;
/**
 * Shuts the master VM down, if no ticket is outstanding.
 * @param {CallOptions} [options]
 * @returns {Promise<void>}
 */
export function shutdownCluster({ signal }?: CallOptions): Promise<void>;
/**
 * Which VM this is.
 * @param {CallOptions} [options]
 * @returns {Promise<Identity>}
 */
export function whoami({ signal }?: CallOptions): Promise<Identity>;
export { SnowflockError };
export type CallOptions = {
    /**
     * Cancels the call when it aborts: it fails with the code `interrupted`.
     */
    signal?: AbortSignal | undefined;
};
export type RequestOptions = {
    /**
     * Count processors, not clones. By default false.
     */
    procs?: boolean | undefined;
    /**
     * From 0 on: any number between min and the one asked for will do. By default -1: all of them.
     */
    min?: number | undefined;
    /**
     * Wait until they are there. By default true; else returns at once with what there is, maybe nothing.
     */
    block?: boolean | undefined;
};
export type TicketResult = {
    /**
     * null when nothing was granted.
     */
    ticket: string | null;
    /**
     * How many were granted.
     */
    allowedClones: number;
};
export type CloneResult = {
    /**
     * How many clones there are.
     */
    nclones: number;
    /**
     * Which VM this is: 0 is the one that forked.
     */
    vmid: number;
};
export type CloneInfo = {
    vmid: number;
    processors: number;
};
export type TicketLists = {
    /**
     * Requested, not yet cloned.
     */
    unused: string[];
    /**
     * Cloned, not yet joined or merged.
     */
    outstanding: string[];
};
export type Identity = {
    clusterid: number;
    vmid: number;
};
/**
 * How a clone exits.
 */
export type ExitOptions = {
    /**
     * A whole number of 32 bits, by default 0.
     */
    status?: number | undefined;
    /**
     * Bytes for whoever joins it.
     */
    result?: Uint8Array | undefined;
    /**
     * A file whose contents are the result.
     */
    resultFile?: string | undefined;
};
/**
 * When to wait no longer; clones that still run then are ended. By default never.
 */
export type JoinOptions = {
    /**
     * When so many have exited.
     */
    count?: number | undefined;
    /**
     * So many seconds after the call.
     */
    deadline?: number | undefined;
    /**
     * When they have run for so many seconds together, since the fork.
     */
    budgetSeconds?: number | undefined;
    /**
     * When they have returned results of so many bytes together.
     */
    budgetBytes?: number | undefined;
};
/**
 * How a clone ended.
 */
export type Outcome = {
    vmid: number;
    /**
     * `exited` by icExit; `ended` by a join that had enough, or its guest powered itself off; or `lost`.
     */
    how: "exited" | "ended" | "lost";
    /**
     * That of icExit; null unless exited.
     */
    status: number | null;
    /**
     * For people.
     */
    reason: string;
    /**
     * What it returned; empty if nothing.
     */
    result: Buffer;
};
import { SnowflockError } from './connection.mjs';
