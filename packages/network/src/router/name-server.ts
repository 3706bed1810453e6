// What the name server of a cluster answers by itself, as a pure function. The names of VMs follow from their vmids, so nothing is stored,
// and a name is known before its VM is there. Names outside are for those on the whitelist; all others are refused.

import { CLUSTER_NETWORK, guestHostname, guestIp, guestIp6, ROUTER_IP, VMID_MAX } from '@snowflock/protocol';
import {
  DNS_CODE,
  DNS_TYPE,
  nameData,
  writeAnswer,
  type DnsQuestion,
  type DnsRecord,
} from './dns-message.ts';

const ROUTER_NAME = 'router';
/** They never change. */
const OWN_TTL_S = 3600;
const VM_NAME = /^sf-(\d{1,8})-(\d{1,5})$/;
const REVERSE = /^(\d{1,3})\.(\d{1,3})\.0\.10\.in-addr\.arpa$/;

export type NameVerdict =
  { readonly kind: 'answer'; readonly message: Buffer } | { readonly kind: 'forward' };

interface Known {
  readonly ip: string;
  readonly ip6: string | null;
}

function knownName(name: string, clusterid: number): Known | null {
  if (name === ROUTER_NAME) return { ip: ROUTER_IP, ip6: null };
  const [, cluster, vm] = VM_NAME.exec(name) ?? [];
  const vmid = Number(vm);
  if (Number(cluster) !== clusterid || vmid > VMID_MAX || name !== guestHostname({ clusterid, vmid }))
    return null;
  return { ip: guestIp(vmid), ip6: guestIp6(vmid) };
}

/** The name of an address of the cluster. */
function reverseName(name: string, clusterid: number): string | null {
  const [, low, high] = REVERSE.exec(name) ?? [];
  if (low === undefined || high === undefined || Number(low) > 255 || Number(high) > 255) return null;
  const host = Number(high) * 256 + Number(low);
  if (`10.0.${host >> 8}.${host & 0xff}` === ROUTER_IP) return ROUTER_NAME;
  return host >= 1 && host <= VMID_MAX + 1 ? guestHostname({ clusterid, vmid: host - 1 }) : null;
}

function ip4Data(ip: string): Buffer {
  return Buffer.from(ip.split('.').map(Number));
}

/** Of an address of the cluster: base::number. */
function ip6Data(ip: string): Buffer {
  const [base = '', number = ''] = ip.split('::');
  const groups = base.split(':').map((group) => Number.parseInt(group, 16));
  const data = Buffer.alloc(16);
  groups.forEach((group, index) => data.writeUInt16BE(group, 2 * index));
  data.writeUInt16BE(Number.parseInt(number, 16), 14);
  return data;
}

export function answerFor(
  question: DnsQuestion,
  options: { readonly clusterid: number; readonly isWhitelisted: (name: string) => boolean },
): NameVerdict {
  const { name, type } = question;
  const answer = (code: number, ...records: DnsRecord[]): NameVerdict => ({
    kind: 'answer',
    message: writeAnswer(question, code, records),
  });
  const record = (data: Buffer): DnsRecord => ({ type, ttlS: OWN_TTL_S, data });
  const known = knownName(name, options.clusterid);
  if (known) {
    if (type === DNS_TYPE.A) return answer(DNS_CODE.ok, record(ip4Data(known.ip)));
    if (type === DNS_TYPE.AAAA && known.ip6) return answer(DNS_CODE.ok, record(ip6Data(known.ip6)));
    return answer(DNS_CODE.ok);
  }
  const reversed = reverseName(name, options.clusterid);
  if (reversed !== null)
    return type === DNS_TYPE.PTR ? answer(DNS_CODE.ok, record(nameData(reversed))) : answer(DNS_CODE.ok);
  if (VM_NAME.test(name) || name.endsWith(`.0.${CLUSTER_NETWORK.base.split('.')[0] ?? ''}.in-addr.arpa`))
    return answer(DNS_CODE.noSuchName);
  if (!options.isWhitelisted(name)) return answer(DNS_CODE.refused);
  // nothing outside is reached by IPv6
  return type === DNS_TYPE.AAAA ? answer(DNS_CODE.ok) : { kind: 'forward' };
}
