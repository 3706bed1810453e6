import { describe, expect, it } from 'vitest';
import { createLog, logAbout, subjectFields, subjectOfPath } from '../src/log.ts';

const TICKET = 'd4d660b0-054e-4017-8393-ad04ff1c1ff7';

describe('what a line is about', () => {
  it('has one name each, whoever says it, and nothing comes along that was not asked for', () => {
    const lines: string[] = [];
    const log = createLog({ name: 'sfld', write: (line) => lines.push(line) });
    const placement = { clusterid: 1, vmid: 2, ticket: TICKET, keyHex: 'S1', host: 'host1' };
    logAbout(log, placement).info('clone runs');
    logAbout(log, { clusterid: 1, ticket: null }).warn('x');
    expect(JSON.parse(lines[0] ?? '')).toMatchObject({
      clusterid: 1,
      vmid: 2,
      ticket: TICKET,
      msg: 'clone runs',
    });
    expect(lines[0]).not.toMatch(/S1|host1/);
    expect(Object.keys(JSON.parse(lines[1] ?? '') as object)).not.toContain('ticket');
    expect(subjectFields({})).toEqual({});
  });

  it('is read from the path of a request', () => {
    expect(subjectOfPath({ clusterid: '7', ticket: TICKET })).toEqual({ clusterid: 7, ticket: TICKET });
    expect(subjectOfPath({ clusterid: '7', vmid: '3' })).toEqual({ clusterid: 7, vmid: 3 });
    expect(subjectOfPath({ vm: '0:12' })).toEqual({ clusterid: 0, vmid: 12 });
    expect(subjectOfPath({ vm: '../x', clusterid: 'x', '*': 'y' })).toEqual({});
    expect(subjectOfPath({ ticket: 'x'.repeat(100_000) }).ticket).toHaveLength(36);
  });

  it('never holds a key, wherever a child log got it', () => {
    const lines: string[] = [];
    const log = createLog({ name: 'sfld', write: (line) => lines.push(line) });
    log
      .child({ source: { keyHex: 'S2' } })
      .info({ token: 'S3', header: { source: { keyHex: 'S4' } } }, 'launch');
    expect(lines.join('')).not.toMatch(/S\d/);
  });
});
