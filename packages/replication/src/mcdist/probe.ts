// Whether multicast gets from one host to others, and with which packets: probes of mcdist, sent and listened for.

import { createSocket, type Socket } from 'node:dgram';
import {
  createMcdistHeader,
  MCDIST_PORT,
  mcdistGroup,
  McdistOpener,
  McdistSealer,
  McdistType,
  pieceBytes,
  piecesFor,
} from '@snowflock/protocol/pages';
import { mtuOf } from './multicast-interface.ts';

/** Ethernet's MTU, which most switches carry whatever the interfaces say; smaller ones are tried too. */
const USUAL_MTU = 1500;
const SMALL_MTU = 1280;
/** IPv4 and UDP. */
const HEADER_BYTES = 28;
const SEND_INTERVAL_MS = 50;

/** Lengths that may be the longest to come through an interface with this MTU as one packet, and on the way to the next host. */
export function packetLengths(mtu: number): number[] {
  return [mtu, USUAL_MTU, SMALL_MTU].map((each) => Math.min(each, mtu));
}

/** A probe as long as the pieces of a page that fit packets of these lengths; each number of pieces once. */
export function sealProbes(sealer: McdistSealer, lengths: readonly number[]): Buffer[] {
  return [...new Set(lengths.map(piecesFor))].map((pieces) => {
    const header = { ...createMcdistHeader(), type: McdistType.probe };
    return sealer.seal(header, Buffer.alloc(pieceBytes(pieces)));
  });
}

export interface MulticastTry {
  /** Of this try: it decides the group, and what counts as heard. 32 bytes. */
  readonly key: Buffer;
  /** Of the interface. */
  readonly address: string;
  /** This host sends, until the time is over; it hears itself, as the others should. */
  readonly sends: boolean;
  readonly listenMs: number;
}

/** Returns the length of the longest packet that came, IP and UDP headers included; 0: nothing did. */
export async function tryMulticast({ key, address, sends, listenMs }: MulticastTry): Promise<number> {
  const group = mcdistGroup(key);
  const opener = new McdistOpener(key);
  const header = createMcdistHeader();
  let heardBytes = 0;
  await using cleanup = new AsyncDisposableStack();
  const open = (options: { reuseAddr?: boolean }): Socket => {
    const socket = createSocket({ type: 'udp4', ...options });
    // no interface, no route: nothing is heard
    socket.on('error', () => undefined);
    cleanup.defer(() => void socket.close());
    return socket;
  };
  const listener = open({ reuseAddr: true });
  listener.on('message', (bytes) => {
    if (opener.open(bytes, header, () => true) !== undefined)
      heardBytes = Math.max(heardBytes, bytes.length + HEADER_BYTES);
  });
  listener.bind({ port: MCDIST_PORT, address: group }, () =>
    quietly(() => listener.addMembership(group, address)),
  );
  if (sends) {
    const sealer = new McdistSealer(key);
    const lengths = packetLengths(mtuOf(address));
    const sender = open({});
    sender.bind({ address }, () =>
      quietly(() => {
        sender.setMulticastInterface(address);
        sender.setMulticastTTL(1);
        sender.setMulticastLoopback(true);
      }),
    );
    const timer = setInterval(() => {
      for (const probe of sealProbes(sealer, lengths))
        quietly(() => sender.send(probe, MCDIST_PORT, group, () => undefined));
    }, SEND_INTERVAL_MS);
    cleanup.defer(() => void clearInterval(timer));
  }
  await new Promise((resolve) => setTimeout(resolve, listenMs));
  return heardBytes;
}

/** What a socket refuses shows in nothing being heard. */
function quietly(work: () => void): void {
  try {
    work();
  } catch {
    // as good as silence
  }
}
