// The little of DNS (RFC 1035) that the router's name server needs: read a question, answer it, find addresses in an answer.
// What it reads comes from guests and from outside: every length is checked, nothing is followed backwards more than once.

export const DNS_TYPE = { A: 1, PTR: 12, AAAA: 28 } as const;
export const DNS_CODE = { ok: 0, formatError: 1, serverFailure: 2, noSuchName: 3, refused: 5 } as const;

const HEADER_BYTES = 12;
const CLASS_IN = 1;
const NAME_MAX_BYTES = 255;
const LABEL_MAX_BYTES = 63;
const POINTER = 0xc0;
/** Records of one answer that are looked at. */
const RECORDS_MAX = 64;
/** The question's name, from an answer's record. */
const QUESTION_POINTER = 0xc00c;
const FLAG = {
  response: 0x8000,
  opcode: 0x7800,
  authoritative: 0x0400,
  recursionDesired: 0x0100,
  recursion: 0x0080,
};

export interface DnsQuestion {
  readonly id: number;
  readonly flags: number;
  /** Lower case, without the last dot. */
  readonly name: string;
  readonly type: number;
  /** The question's section as it came, for the answer. */
  readonly section: Buffer;
}

export interface DnsRecord {
  readonly type: number;
  readonly ttlS: number;
  readonly data: Buffer;
}

/** Null for whatever is not one question of the Internet's class. */
export function readQuestion(message: Buffer): DnsQuestion | null {
  if (message.length < HEADER_BYTES || message.readUInt16BE(4) !== 1) return null;
  const flags = message.readUInt16BE(2);
  if ((flags & (FLAG.response | FLAG.opcode)) !== 0) return null;
  const named = readLabels(message, HEADER_BYTES);
  if (!named || named.end + 4 > message.length) return null;
  if (message.readUInt16BE(named.end + 2) !== CLASS_IN) return null;
  return {
    id: message.readUInt16BE(0),
    flags,
    name: named.name,
    type: message.readUInt16BE(named.end),
    section: message.subarray(HEADER_BYTES, named.end + 4),
  };
}

/** Without compression: of a question. */
function readLabels(message: Buffer, start: number): { name: string; end: number } | null {
  const labels: string[] = [];
  for (let at = start; at < message.length && at - start < NAME_MAX_BYTES;) {
    const length = message[at] ?? 0;
    if (length === 0) return { name: labels.join('.').toLowerCase(), end: at + 1 };
    if (length > LABEL_MAX_BYTES || at + 1 + length > message.length) return null;
    labels.push(message.toString('latin1', at + 1, at + 1 + length));
    at += 1 + length;
  }
  return null;
}

function header(id: number, flags: number, counts: { questions: number; answers: number }): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES);
  bytes.writeUInt16BE(id, 0);
  bytes.writeUInt16BE(flags, 2);
  bytes.writeUInt16BE(counts.questions, 4);
  bytes.writeUInt16BE(counts.answers, 6);
  return bytes;
}

/** To ask for. Throws RangeError for a name that has no such form. */
export function writeQuestion(id: number, name: string, type: number): Buffer {
  const labels = name.split('.').flatMap((label) => {
    const bytes = Buffer.from(label, 'latin1');
    if (bytes.length < 1 || bytes.length > LABEL_MAX_BYTES) throw new RangeError(`'${name}' is no DNS name`);
    return [Buffer.of(bytes.length), bytes];
  });
  const end = Buffer.of(0, type >> 8, type & 0xff, 0, CLASS_IN);
  return Buffer.concat([header(id, FLAG.recursionDesired, { questions: 1, answers: 0 }), ...labels, end]);
}

export function writeAnswer(question: DnsQuestion, code: number, records: readonly DnsRecord[] = []): Buffer {
  const flags =
    FLAG.response | FLAG.authoritative | FLAG.recursion | (question.flags & FLAG.recursionDesired) | code;
  const answers = records.flatMap(({ type, ttlS, data }) => {
    const fixed = Buffer.alloc(12);
    fixed.writeUInt16BE(QUESTION_POINTER, 0);
    fixed.writeUInt16BE(type, 2);
    fixed.writeUInt16BE(CLASS_IN, 4);
    fixed.writeUInt32BE(ttlS, 6);
    fixed.writeUInt16BE(data.length, 10);
    return [fixed, data];
  });
  const counts = { questions: 1, answers: records.length };
  return Buffer.concat([header(question.id, flags, counts), question.section, ...answers]);
}

/** The data of a PTR record. */
export function nameData(name: string): Buffer {
  return writeQuestion(0, name, 0).subarray(HEADER_BYTES, -4);
}

/** Whether it answers this question, asked with this id. */
export function answers(message: Buffer, id: number, section: Buffer): boolean {
  return (
    message.length >= HEADER_BYTES + section.length &&
    message.readUInt16BE(0) === id &&
    (message.readUInt16BE(2) & FLAG.response) !== 0 &&
    message.subarray(HEADER_BYTES, HEADER_BYTES + section.length).equals(section)
  );
}

/** The IPv4 addresses among the answers of a response; what is cut short gives those before. */
export function readAddresses(message: Buffer): { readonly ip: string; readonly ttlS: number }[] {
  const found: { ip: string; ttlS: number }[] = [];
  if (message.length < HEADER_BYTES) return found;
  let at = HEADER_BYTES;
  for (let questions = message.readUInt16BE(4); questions > 0; questions--) {
    const end = skipName(message, at);
    if (end === null) return found;
    at = end + 4;
  }
  const count = Math.min(message.readUInt16BE(6), RECORDS_MAX);
  for (let index = 0; index < count; index++) {
    const end = skipName(message, at);
    if (end === null || end + 10 > message.length) return found;
    const length = message.readUInt16BE(end + 8);
    const data = message.subarray(end + 10, end + 10 + length);
    if (data.length < length) return found;
    if (
      message.readUInt16BE(end) === DNS_TYPE.A &&
      message.readUInt16BE(end + 2) === CLASS_IN &&
      length === 4
    )
      found.push({ ip: data.join('.'), ttlS: message.readUInt32BE(end + 4) });
    at = end + 10 + length;
  }
  return found;
}

/** Where the name ends; a pointer ends it. */
function skipName(message: Buffer, start: number): number | null {
  for (let at = start; at < message.length;) {
    const length = message[at] ?? 0;
    if (length === 0) return at + 1;
    if (length >= POINTER) return at + 2 <= message.length ? at + 2 : null;
    if (length > LABEL_MAX_BYTES) return null;
    at += 1 + length;
  }
  return null;
}
