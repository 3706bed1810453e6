// The examples on a real system.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { stripTypeScriptTypes } from 'node:module';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { System } from '@snowflock/sdk';
import { bestOf, WAYS } from '../examples/sandbox/best-of.ts';
import { requireVm } from './require-vm.ts';
import { compileForGuest } from './support/guest-programs.ts';
import { sharedLab } from './support/test-lab.ts';

const EXAMPLES = join(import.meta.dirname, '../examples');
const EXAMPLES_VM = { diskImage: 'examples', vcpus: 1, memoryMib: 320 };
/** Two clones and a program to start in each, under emulation. */
const RUN_MS = 90_000;

describe.skipIf(!requireVm())('examples', () => {
  const lab = sharedLab({ hosts: 1, cpus: 5, ramMib: 2048 });
  const example = (path: string): Buffer => readFileSync(join(EXAMPLES, path));

  it('a branching sandbox keeps the best of four attempts, and nothing else', async () => {
    const dir = mkdtempSync('/tmp/sfex-');
    try {
      await using system = System.connect({ socketPath: lab().lab.hosts[0]?.socketPath ?? '' });
      const best = await bestOf(system, WAYS, join(dir, 'best'));
      expect(best.way).toBe(WAYS[3]);
      const kept = readFileSync(join(dir, 'best'));
      expect(kept.length).toBe(best.bytes);
      expect(gunzipSync(kept).toString()).toBe('1\n'.repeat(40_000));
      await lab().expectIdle();
    } finally {
      rmSync(dir, { recursive: true });
    }
  });

  it('run in VMs: parallel maps, Monte Carlo with QuantLib, alignment with bowtie2', async () => {
    const master = await lab().seed(EXAMPLES_VM);
    const run = async (argv: readonly string[]): Promise<string> => {
      const { status, out, err } = await master.exec(argv, { deadlineMs: RUN_MS });
      expect({ argv, status, err }).toEqual({ argv, status: 0, err: '' });
      return out;
    };

    const [python, c, typescript] = ['parallel_map.py', 'parallel_map', 'parallel-map.mjs'];
    await master.put(`/root/${python}`, example('parallel-map/parallel_map.py'));
    await master.put(`/root/${c}`, await compileForGuest('parallel_map', join(EXAMPLES, 'parallel-map')));
    const source = example('parallel-map/parallel-map.mts').toString();
    await master.put(`/root/${typescript}`, Buffer.from(stripTypeScriptTypes(source)));
    await master.sh('mkdir -p node_modules && ln -s /usr/lib/node_modules/snowflock node_modules/');
    for (const argv of [['python3', python], [`./${c}`], ['node', typescript]])
      expect(JSON.parse(await run([...argv, '2', '20000']))).toMatchObject({ primes: 2262 });

    await master.put('/root/monte_carlo.py', example('monte-carlo/monte_carlo.py'));
    const strikes = ['95', '100', '100.5', '105'];
    const prices = z
      .array(z.object({ strike: z.number(), price: z.number(), error: z.number() }))
      .parse(JSON.parse(await run(['python3', 'monte_carlo.py', '2', '100', ...strikes])));
    expect(prices.map(({ strike }) => strike)).toEqual(strikes.map(Number));
    // On the same paths a higher strike is never worth more, and half a unit of it costs less than half: noise of 100 paths alone
    // would be larger than that.
    for (const [at, { price }] of prices.slice(1).entries())
      expect(price).toBeLessThan(prices[at]?.price ?? 0);
    const [, hundred, more] = prices;
    expect((hundred?.price ?? 0) - (more?.price ?? 0)).toBeLessThan(0.5);
    expect(hundred?.error).toBeGreaterThan(0.5);

    await master.put('/root/align_clones.py', example('bowtie2/align_clones.py'));
    await master.sh('head -n 1600 /srv/lambda/reads_1.fq > reads.fq');
    const whole = await run(['bowtie2', '--quiet', '-x', '/srv/lambda/lambda_virus', '-U', 'reads.fq']);
    const aligned = await run(['python3', 'align_clones.py', '2', '/srv/lambda/lambda_virus', 'reads.fq']);
    const withoutCommand = (sam: string): string => sam.replace(/^@PG.*\n/m, '');
    expect(withoutCommand(aligned)).toBe(withoutCommand(whole));
    expect(aligned.split('\n').filter((line) => /^r\d+\t/.test(line))).toHaveLength(400);
  });
});
