// The guest channel: frames between the in-guest agent and sfld over one virtio-serial port.
// The specification is docs/guest-channel.md; guest/c mirrors it; both are tested against
// packages/protocol/vectors/guest-channel.json.

import { SnowflockError } from './errors.ts';

/** Largest payload of one frame in bytes; bounds what either side must buffer for a frame. */
export const GUEST_PAYLOAD_MAX = 65536;
/** Bytes after the length field that are not payload: type, three reserved, id. */
export const GUEST_HEADER_REST = 8;
/** What one direction of an exec session may have in flight before the receiver grants more, in bytes. */
export const EXEC_WINDOW_BYTES = 256 * 1024;
/** The same of the bytes that follow a call or a reply. */
export const CALL_WINDOW_BYTES = 256 * 1024;

export const GuestFrameType = {
  // guest to host
  hello: 1,
  call: 2,
  held: 3,
  identified: 4,
  execOut: 5,
  execExit: 6,
  cancel: 7,
  callData: 8,
  settled: 9,
  // host to guest
  reply: 17,
  hold: 18,
  identity: 19,
  execStart: 20,
  execIn: 21,
  execSignal: 22,
  replyData: 23,
  // both
  execCredit: 32,
  callCredit: 33,
} as const;

export type GuestFrameType = (typeof GuestFrameType)[keyof typeof GuestFrameType];

const KNOWN_TYPES: ReadonlySet<number> = new Set(Object.values(GuestFrameType));

/** Payload of an IDENTIFIED whose guest has something to do before its programs go on; SETTLED says when it has. */
export const IDENTIFIED_SETTLING = 'settling';

export interface GuestFrame {
  readonly type: GuestFrameType;
  /** Call id, fork id or exec session id, as the type says. Unsigned 32 bit. */
  readonly id: number;
  readonly payload: Buffer;
}

/** N of a line whose last word is `+N`: so many bytes follow it. 0 for any other line. */
export function announcedBytes(line: string): number {
  return Number(/ \+(\d{1,10})$/.exec(line)?.[1] ?? 0);
}

export function encodeGuestFrame(frame: {
  type: GuestFrameType;
  id: number;
  payload?: Buffer | string;
}): Buffer {
  const payload =
    typeof frame.payload === 'string' ? Buffer.from(frame.payload) : (frame.payload ?? Buffer.alloc(0));
  if (payload.length > GUEST_PAYLOAD_MAX)
    throw new SnowflockError(
      'bad-request',
      `guest frame payload of ${payload.length} bytes is over ${GUEST_PAYLOAD_MAX}`,
    );
  const out = Buffer.alloc(4 + GUEST_HEADER_REST + payload.length);
  out.writeUInt32LE(GUEST_HEADER_REST + payload.length, 0);
  out.writeUInt8(frame.type, 4);
  out.writeUInt32LE(frame.id >>> 0, 8);
  payload.copy(out, 12);
  return out;
}

/** Reassembles frames from a byte stream. Throws 'bad-request' on a frame that no honest peer sends; the stream is then unusable. */
export class GuestFrameDecoder {
  #pending: Buffer = Buffer.alloc(0);

  push(chunk: Buffer): GuestFrame[] {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    const frames: GuestFrame[] = [];
    for (;;) {
      const buf = this.#pending;
      if (buf.length < 4) return frames;
      const length = buf.readUInt32LE(0);
      if (length < GUEST_HEADER_REST || length > GUEST_HEADER_REST + GUEST_PAYLOAD_MAX)
        throw new SnowflockError('bad-request', `guest frame length ${length} is out of range`);
      if (buf.length < 4 + length) return frames;
      const type = buf.readUInt8(4);
      if (!KNOWN_TYPES.has(type))
        throw new SnowflockError('bad-request', `guest frame type ${type} is unknown`);
      frames.push({
        type: type as GuestFrameType,
        id: buf.readUInt32LE(8),
        payload: Buffer.from(buf.subarray(12, 4 + length)),
      });
      this.#pending = buf.subarray(4 + length);
    }
  }

  /** True between frames: nothing half-received. */
  get idle(): boolean {
    return this.#pending.length === 0;
  }

  /** The bytes that have come of a frame that is not whole yet. */
  get rest(): Buffer {
    return Buffer.from(this.#pending);
  }
}

/** Who a VM is: sent at boot (answering hello) and at every fork. Encoded as key=value lines. */
export interface GuestIdentity {
  readonly clusterid: number;
  readonly vmid: number;
  /** Clones made by this fork; 0 at boot. */
  readonly nclones: number;
  /** Processors that it shall have; absent: as many as there are. */
  readonly vcpus?: number | undefined;
  /** Of the fork; absent at boot. */
  readonly ticket?: string | undefined;
  readonly hostname: string;
  readonly ip: string;
  readonly prefix: number;
  /** Absent: the guest has no IPv6. */
  readonly ip6?: string | undefined;
  readonly prefix6?: number | undefined;
  /** Default route and name server; absent: as the guest has them. */
  readonly gateway?: string | undefined;
  readonly resolver?: string | undefined;
  readonly mac: string;
  readonly mtu: number;
  /** The host's wall clock, nanoseconds since 1970. */
  readonly timeNs: bigint;
  /** Fresh random bytes for the guest's generator, 64 of them. */
  readonly entropy: Buffer;
}

export function encodeIdentity(identity: GuestIdentity): string {
  return (
    [
      `clusterid=${identity.clusterid}`,
      `vmid=${identity.vmid}`,
      `nclones=${identity.nclones}`,
      ...(identity.vcpus === undefined ? [] : [`vcpus=${identity.vcpus}`]),
      ...(identity.ticket === undefined ? [] : [`ticket=${identity.ticket}`]),
      `hostname=${identity.hostname}`,
      `ip=${identity.ip}`,
      `prefix=${identity.prefix}`,
      ...(identity.ip6 === undefined ? [] : [`ip6=${identity.ip6}`, `prefix6=${identity.prefix6 ?? 64}`]),
      ...(identity.gateway === undefined ? [] : [`gateway=${identity.gateway}`]),
      ...(identity.resolver === undefined ? [] : [`resolver=${identity.resolver}`]),
      `mac=${identity.mac}`,
      `mtu=${identity.mtu}`,
      `time_ns=${identity.timeNs}`,
      `entropy=${identity.entropy.toString('hex')}`,
    ].join('\n') + '\n'
  );
}
