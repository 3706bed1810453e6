// A lab host's cable: cut, slow, lossy. Applies the rules of topology.ts.

import { runBatch, runTool } from '@snowflock/network';
import { SnowflockError } from '@snowflock/protocol';
import { switchNetns, switchPort } from './names.ts';
import { cableEnds, dropRules, rateArgs, type LinkShape } from './topology.ts';

export async function setCable(name: string, k: number, state: 'up' | 'down'): Promise<void> {
  await runBatch('ip', [`link set dev ${switchPort(k)} ${state}`], { netns: switchNetns(name) });
}

export async function shapeCable(name: string, k: number, shape: LinkShape): Promise<void> {
  const { rateMbit, dropPercent = 0 } = shape;
  if ((rateMbit !== undefined && !(rateMbit > 0)) || !(dropPercent >= 0 && dropPercent <= 100))
    throw new SnowflockError('bad-request', 'rateMbit is above 0 and dropPercent between 0 and 100');
  for (const { netns, device } of cableEnds(name, k)) {
    const limited = (await runTool('tc', ['qdisc', 'show', 'dev', device], { netns })).includes('tbf');
    if (limited || rateMbit !== undefined) await runTool('tc', rateArgs(device, rateMbit), { netns });
    await runTool('nft', ['-f', '-'], { netns, input: dropRules(device, dropPercent) });
  }
}
