// The guest channel on the host's side: frames out of bytes that come in any pieces, and the calls in them. A guest's words
// reach sfmd only as questions about its own cluster.

import {
  GuestFrameDecoder,
  encodeGuestFrame,
  GuestFrameType,
  SnowflockError,
  type ControlClient,
  type GuestFrame,
} from '@snowflock/protocol';
import { EventEmitter } from 'node:events';
import { setImmediate } from 'node:timers/promises';
import type { AgentLink } from '@snowflock/vm';
import { GuestCalls } from '../../../packages/daemon/src/sfld/guest-calls.ts';
import { GuestPort } from '../../../packages/daemon/src/sfld/guest-port.ts';
import type { Target } from '../engine.ts';

const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';
const CLUSTER = 7;
const OWN =
  /^\/v1\/clusters\/7(\/(merge|vms\/\d+\/reset|tickets(\/[0-9a-fA-F-]{36}(\/(merge|join|wait))?)?))?(\?(by=guest|vm=[03]))?$/;
/** Of the event loop; nothing that a call here does takes more. */
const TURNS = 8;
const REPLY = /^(ok|err [a-z-]+ )/;

/** Answers what sfmd would if it knew nothing. */
const masterDaemon = {
  async request({ path }: { path: string }) {
    if (!OWN.test(path)) throw new Error(`a guest of cluster ${CLUSTER} made sfld ask for ${path}`);
    throw new SnowflockError('no-such-ticket', 'sfmd does not know it\nat all');
  },
} as unknown as ControlClient;

function callsOf(vmid: number): GuestCalls {
  return new GuestCalls({
    vm: { clusterid: CLUSTER, vmid },
    masterDaemon,
    cloneMaster: async () => 3,
    exit: async ({ bytes }) => {
      for await (const _chunk of bytes ?? []);
    },
    results: { read: () => null },
    host: 'h1',
    onError: () => undefined,
  });
}

/** A guest channel whose guest has sent these frames and is gone; every reply is looked at. */
async function hear(frames: readonly GuestFrame[], vmid: number): Promise<void> {
  let wrong: string | null = null;
  const link = Object.assign(new EventEmitter(), {
    closed: false,
    closeReason: 'the VM ended',
    send: (frame: Parameters<typeof encodeGuestFrame>[0]) => void encodeGuestFrame(frame),
    sendIdentity: () => undefined,
    reply: (id: number, text: string) => {
      if (!REPLY.test(`${text} `) || /[\n\0]/.test(text)) wrong = `not a reply line: ${text}`;
      if (text.startsWith('err internal')) wrong = text;
      encodeGuestFrame({ type: GuestFrameType.reply, id, payload: text });
    },
  });
  new GuestPort({ link: link as unknown as AgentLink, calls: callsOf(vmid), onHello: () => undefined });
  for (const frame of frames) link.emit('frame', frame);
  for (let turn = 0; turn < TURNS; turn++) await setImmediate();
  link.closed = true;
  link.emit('close');
  for (let turn = 0; turn < TURNS; turn++) await setImmediate();
  if (wrong !== null) throw new Error(wrong);
}

const call = (text: string): Buffer => encodeGuestFrame({ type: GuestFrameType.call, id: 1, payload: text });
const data = (text: string): Buffer =>
  encodeGuestFrame({ type: GuestFrameType.callData, id: 1, payload: text });

export const target: Target = {
  name: 'guest',
  maxBytes: 70_000,
  seeds: [
    Buffer.concat([
      encodeGuestFrame({ type: GuestFrameType.hello, id: 0, payload: 'version=1' }),
      call('list_tickets'),
    ]),
    ...[
      `clone_master ${TICKET}`,
      'request_clone_ticket 4 0 -1 1',
      `ic_join ${TICKET}`,
      'merge_master *',
      'reset_clone 1',
      'shutdown_cluster',
    ].map(call),
    ...[`read_ticket_info ${TICKET}`, `dispose_ticket ${TICKET}`, 'ic_exit', `ic_kill ${TICKET}`].map(call),
    Buffer.concat([call('ic_exit 3 +10'), data('hello'), data('world')]),
    Buffer.concat([call('ic_exit -1 +3'), data('more than that')]),
    Buffer.concat([
      call(`wait_clones ${TICKET} 1 1000 - 65536`),
      encodeGuestFrame({ type: GuestFrameType.callCredit, id: 1, payload: Buffer.alloc(4, 1) }),
    ]),
    Buffer.concat([
      encodeGuestFrame({ type: GuestFrameType.execOut, id: 9, payload: '\x01hello' }),
      encodeGuestFrame({ type: GuestFrameType.execCredit, id: 9, payload: Buffer.alloc(4, 1) }),
    ]),
  ],
  dictionary: [
    TICKET,
    '/../',
    '?by=guest',
    '%2f',
    ' ',
    '*',
    '-1',
    '../8/tickets',
    'clone_master',
    'ic_exit',
    'reset_clone',
    'wait_clones',
    ' +1',
    '\n',
    '\0',
  ],
  async run(input) {
    const whole = framesOf([input]);
    const cut = Math.floor(input.length / 3);
    const pieces = framesOf([input.subarray(0, cut), input.subarray(cut, cut + 1), input.subarray(cut + 1)]);
    // Frames before one that breaks the rules are lost when they come in one piece with it: the channel ends anyway.
    const common = whole.broken ? pieces.frames.slice(0, whole.frames.length) : pieces.frames;
    if (whole.broken !== pieces.broken || JSON.stringify(whole.frames) !== JSON.stringify(common))
      throw new Error('frames depend on how their bytes arrive');
    for (const vmid of [0, 3]) await hear(whole.frames, vmid);
  },
};

function framesOf(chunks: readonly Buffer[]): { frames: GuestFrame[]; broken: boolean } {
  const decoder = new GuestFrameDecoder();
  const frames: GuestFrame[] = [];
  for (const chunk of chunks)
    try {
      frames.push(...decoder.push(chunk));
    } catch (error) {
      if (!(error instanceof SnowflockError) || error.code !== 'bad-request') throw error;
      return { frames, broken: true };
    }
  return { frames, broken: false };
}
