// Questions to the name servers of the host. Each has a socket of its own, and so a source port that nobody outside can know.

import { createSocket } from 'node:dgram';
import { randomInt } from 'node:crypto';
import { SnowflockError } from '@snowflock/protocol';
import { answers, type DnsQuestion } from './dns-message.ts';

const SERVER_TIMEOUT_MS = 2_000;
const DNS_PORT = 53;

/** As the question came, with the answering server's bytes and the asker's id. Servers are asked in order until one answers. */
export async function askUpstream(
  message: Buffer,
  question: DnsQuestion,
  servers: readonly string[],
): Promise<Buffer> {
  let last: unknown = new SnowflockError('unavailable', 'this host has no name server that can be asked');
  for (const server of servers) {
    try {
      const answer = await askServer(message, question, server);
      answer.writeUInt16BE(question.id, 0);
      return answer;
    } catch (error) {
      last = error;
    }
  }
  throw last;
}

function askServer(message: Buffer, question: DnsQuestion, server: string): Promise<Buffer> {
  const id = randomInt(0x10000);
  const asked = Buffer.from(message);
  asked.writeUInt16BE(id, 0);
  const socket = createSocket('udp4');
  return new Promise<Buffer>((resolve, reject) => {
    const fail = (why: string): void =>
      reject(new SnowflockError('unavailable', `name server ${server}, asked for ${question.name}: ${why}`));
    const timer = setTimeout(() => fail(`no answer within ${SERVER_TIMEOUT_MS} ms`), SERVER_TIMEOUT_MS);
    socket.on('error', (error) => fail(error.message));
    socket.on('message', (answer) => {
      if (answers(answer, id, question.section)) resolve(answer);
    });
    socket.connect(DNS_PORT, server, () => socket.send(asked));
    socket.once('close', () => clearTimeout(timer));
  }).finally(() => socket.close());
}

/** The IPv4 name servers of `resolv.conf`, at most three, as the C library reads them. */
export function nameserversOf(resolvConf: string): string[] {
  return [...resolvConf.matchAll(/^\s*nameserver\s+(\d{1,3}(?:\.\d{1,3}){3})\s*$/gm)]
    .map((match) => match[1] ?? '')
    .slice(0, 3);
}
