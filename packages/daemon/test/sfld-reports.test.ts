import { expect, it } from 'vitest';
import { SnowflockError, type ControlClient } from '@snowflock/protocol';
import { silentLog } from '../src/log.ts';
import { Reports } from '../src/sfld/reports.ts';

function reports() {
  const paths: string[] = [];
  let answer: () => Promise<void> = () => Promise.resolve();
  const request = ({ path }: { path: string }): Promise<unknown> => {
    paths.push(path);
    return answer();
  };
  const masterDaemon = { request } as unknown as Pick<ControlClient, 'request'>;
  return {
    paths,
    answerWith: (next: () => Promise<void>) => (answer = next),
    made: new Reports({ masterDaemon, log: silentLog() }),
  };
}
const lost = { how: 'lost', reason: 'it was killed' } as const;
const fail = (code: 'host-down' | 'no-such-vm') => () => Promise.reject(new SnowflockError(code, code));

it('tells sfmd at once', async () => {
  const { made, paths } = reports();
  await made.ended({ clusterid: 1, vmid: 2 }, lost);
  expect(paths).toEqual(['/v1/clusters/1/vms/2/ended']);
});

it('keeps what sfmd could not be told, in order, until it can', async () => {
  const { made, paths, answerWith } = reports();
  answerWith(fail('host-down'));
  let told = 0;
  for (const vmid of [1, 2]) void made.ended({ clusterid: 1, vmid }, lost).then(() => told++);
  await made.flush();
  await made.flush();
  expect(told).toBe(0);
  answerWith(() => Promise.resolve());
  paths.length = 0;
  await made.flush();
  expect(paths).toEqual(['/v1/clusters/1/vms/1/ended', '/v1/clusters/1/vms/2/ended']);
  expect(told).toBe(2);
  await made.flush();
  expect(paths.length).toBe(2);
});

it('does not repeat what sfmd refuses', async () => {
  const { made, paths, answerWith } = reports();
  answerWith(fail('no-such-vm'));
  await made.ended({ clusterid: 1, vmid: 2 }, lost);
  await made.flush();
  expect(paths.length).toBe(1);
});
