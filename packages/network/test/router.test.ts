// The router as data: rules, names, the DNS that it reads and writes, addresses of names over time.

import fc from 'fast-check';
import { CLUSTERID_MAX } from '@snowflock/protocol';
import { afterEach, describe, expect, it, vi } from 'vitest';
import {
  capCommands,
  hostRoutingRules,
  routerLinkCommands,
  routerRules,
  uplinkAddresses,
  whitelistParts,
} from '../src/index.ts';
import {
  answers,
  DNS_TYPE,
  readAddresses,
  readQuestion,
  writeAnswer,
  writeQuestion,
  type DnsQuestion,
} from '../src/router/dns-message.ts';
import { answerFor } from '../src/router/name-server.ts';
import { NamedAddresses, type Named } from '../src/router/named-addresses.ts';
import { namedRules } from '../src/router/rules.ts';
import { nameserversOf } from '../src/router/upstream.ts';

describe('the rules of a router', () => {
  it('let what is on the whitelist be forwarded, and drop by default', () => {
    const rules = routerRules({
      addresses: ['10.1.0.0/16'],
      named: [{ ip: '192.0.2.7', seconds: 90 }],
      exposed: [{ ip: '10.0.0.2', port: 80, hostPort: 8080 }],
    });
    expect(rules).toContain('hook input priority filter; policy drop;');
    expect(rules).toContain('hook forward priority filter; policy drop;');
    expect(rules).toContain('auto-merge; elements = { 10.1.0.0/16 };');
    expect(rules).toContain('elements = { 192.0.2.7 timeout 90s };');
    expect(rules).toContain('iifname "up" tcp dport 8080 dnat to 10.0.0.2:80');
    expect(routerRules({ addresses: [], named: [], exposed: [] })).not.toMatch(/elements|dnat to/);
  });

  it('renew an address that is known', () => {
    const verbs = namedRules([{ ip: '192.0.2.7', seconds: 5 }]).match(/^\w+/gm);
    expect(verbs).toEqual(['add', 'delete', 'add']);
  });

  it('take addresses, subnets and names apart, and leave IPv6 out', () => {
    const whitelist = ['192.0.2.1', '10.1.0.0/16', 'WWW.Example.org.', 'www.example.org', 'fd00::/8', '::1'];
    expect(whitelistParts(whitelist)).toEqual({
      addresses: ['192.0.2.1', '10.1.0.0/16'],
      names: ['www.example.org'],
    });
  });

  it('cap both directions, or none', () => {
    expect(capCommands(20)).toHaveLength(2);
    expect(capCommands(20).every((command) => command.includes('tbf rate 20mbit'))).toBe(true);
    expect(capCommands(null).join()).not.toContain('rate');
  });

  it('give each cluster an uplink of its own, that no other network has', () => {
    expect(uplinkAddresses(0)).toEqual({ host: '240.0.0.0', router: '240.0.0.1' });
    expect(uplinkAddresses(CLUSTERID_MAX)).toEqual({ host: '241.255.255.252', router: '241.255.255.253' });
    expect(routerLinkCommands(7, '/proc/1/fd/3').join('\n')).toContain('addr add 240.0.0.14/31 dev sfu7');
  });

  it('keep hosts from being reached, and other packets from being forwarded by a host that did not', () => {
    const routing = { hosts: ['10.9.0.2', '10.9.0.1'], exposed: [{ clusterid: 1, hostPort: 80 }] };
    const rules = hostRoutingRules(routing, { onlyForRouters: true });
    expect(rules).toContain('elements = { 10.9.0.1, 10.9.0.2 };');
    expect(rules.indexOf('ip daddr @hosts reject')).toBeLessThan(rules.indexOf('iifname "sfu*" accept'));
    expect(rules.match(/tcp dport 80 dnat to 240\.0\.0\.3:80/g)).toHaveLength(2);
    expect(rules).toContain('jump forwards_for_routers_only');
    expect(hostRoutingRules(routing, { onlyForRouters: false })).not.toContain('forwards_for_routers_only');
    expect(() => hostRoutingRules({ hosts: ['a; b'], exposed: [] }, { onlyForRouters: true })).toThrow(
      /IPv4/,
    );
  });
});

function question(name: string, type: number = DNS_TYPE.A): DnsQuestion {
  const read = readQuestion(writeQuestion(7, name, type));
  if (!read) throw new Error(`${name} could not be read`);
  return read;
}

describe('names', () => {
  const ask = (name: string, type?: number): { kind: string; code?: number; ip?: string } => {
    const verdict = answerFor(question(name, type), {
      clusterid: 3,
      isWhitelisted: (each) => each === 'a.example',
    });
    if (verdict.kind === 'forward') return { kind: 'forward' };
    const [found] = readAddresses(verdict.message);
    return { kind: 'answer', code: verdict.message.readUInt16BE(2) & 15, ...(found && { ip: found.ip }) };
  };

  it.each([
    ['sf-3-0', { kind: 'answer', code: 0, ip: '10.0.0.1' }],
    ['SF-3-41', { kind: 'answer', code: 0, ip: '10.0.0.42' }],
    ['router', { kind: 'answer', code: 0, ip: '10.0.255.254' }],
    ['sf-3-041', { kind: 'answer', code: 3 }],
    ['sf-4-0', { kind: 'answer', code: 3 }],
    ['sf-3-65533', { kind: 'answer', code: 3 }],
    ['a.example', { kind: 'forward' }],
    ['b.a.example', { kind: 'answer', code: 5 }],
  ])('%s', (name, expected) => expect(ask(name)).toEqual(expected));

  it('answers the other way and for IPv6, and has no IPv6 for the outside', () => {
    const name = (verdict: ReturnType<typeof answerFor>): string =>
      verdict.kind === 'answer' ? verdict.message.toString('latin1') : '';
    const options = { clusterid: 3, isWhitelisted: () => true };
    expect(name(answerFor(question('42.0.0.10.in-addr.arpa', DNS_TYPE.PTR), options))).toMatch(
      /\x07sf-3-41\0$/,
    );
    expect(name(answerFor(question('254.255.0.10.in-addr.arpa', DNS_TYPE.PTR), options))).toMatch(
      /\x06router\0$/,
    );
    const ip6 = answerFor(question('sf-3-41', DNS_TYPE.AAAA), options);
    expect(ip6.kind === 'answer' && ip6.message.subarray(-16).toString('hex')).toBe(
      'fd536e6f77660000000000000000002a',
    );
    expect(ask('a.example', DNS_TYPE.AAAA)).toEqual({ kind: 'answer', code: 0 });
  });
});

describe('DNS messages', () => {
  it('are read whatever they are, and nothing is read beyond them', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 600 }), (bytes) => {
        readQuestion(Buffer.from(bytes));
        expect(readAddresses(Buffer.from(bytes)).length).toBeLessThanOrEqual(64);
      }),
    );
  });

  it('give the question and its addresses back, cut short at any byte or not', () => {
    const asked = question('www.example.org');
    expect(asked).toMatchObject({ id: 7, name: 'www.example.org', type: DNS_TYPE.A });
    const record = (ip: number[]) => ({ type: DNS_TYPE.A, ttlS: 60, data: Buffer.from(ip) });
    const answer = writeAnswer(asked, 0, [record([192, 0, 2, 1]), record([192, 0, 2, 2])]);
    expect(readAddresses(answer)).toEqual([
      { ip: '192.0.2.1', ttlS: 60 },
      { ip: '192.0.2.2', ttlS: 60 },
    ]);
    expect(answers(answer, 7, asked.section)).toBe(true);
    expect(answers(answer, 8, asked.section)).toBe(false);
    expect(answers(answer, 7, question('www.example.com').section)).toBe(false);
    for (let length = 0; length < answer.length; length++)
      expect(readAddresses(answer.subarray(0, length)).length).toBeLessThan(2);
  });

  it.each(['', 'a..b', `${'x'.repeat(64)}.example`])('%j is no name', (name) =>
    expect(() => writeQuestion(0, name, 1)).toThrow(RangeError),
  );
});

it('asks the name servers that the C library would ask', () => {
  const text =
    '# nameserver 192.0.2.9\nnameserver 127.0.0.53\n nameserver ::1\nnameserver 192.0.2.1 \nsearch x\n';
  expect(nameserversOf(text)).toEqual(['127.0.0.53', '192.0.2.1']);
});

describe('addresses of names', () => {
  afterEach(() => void vi.useRealTimers());

  function world() {
    vi.useFakeTimers();
    const state = { ip: [192, 0, 2, 1], ttlS: 30, fails: false, asked: 0, failures: 0, named: [] as Named[] };
    const names = new NamedAddresses({
      ask: (_message, asked) => {
        state.asked += 1;
        if (state.fails) return Promise.reject(new Error('no answer'));
        const data = Buffer.from(state.ip);
        return Promise.resolve(writeAnswer(asked, 0, [{ type: DNS_TYPE.A, ttlS: state.ttlS, data }]));
      },
      onAddresses: (named) => Promise.resolve(void state.named.push(...named)),
      onFailure: () => void (state.failures += 1),
      now: () => Date.now(),
    });
    return { names, state };
  }

  it('are renewed before they run out, and run out when nobody answers', async () => {
    const { names, state } = world();
    await names.setNames(['a.example']);
    expect(state.named).toEqual([{ ip: '192.0.2.1', seconds: 90 }]);
    await vi.advanceTimersByTimeAsync(65_000);
    expect(state.asked).toBe(3);
    expect(names.current).toHaveLength(1);
    state.fails = true;
    await vi.advanceTimersByTimeAsync(90_000);
    expect(names.current).toEqual([]);
    expect(state.failures).toBeGreaterThan(5);
    state.fails = false;
    await vi.advanceTimersByTimeAsync(6_000);
    expect(names.current).toHaveLength(1);
    names[Symbol.dispose]();
  });

  it('go with the name, while those of others are looked up again', async () => {
    const { names, state } = world();
    await names.setNames(['a.example', 'b.example']);
    state.ip = [192, 0, 2, 2];
    await names.setNames(['b.example']);
    expect(names.current.map(({ ip }) => ip)).toEqual(['192.0.2.2']);
    expect(names.has('a.example')).toBe(false);
    names[Symbol.dispose]();
    expect(vi.getTimerCount()).toBe(0);
  });
});
