// The lab's hosts without SnowFlock's rules for the frames of VMs, for as long as something is measured.

import type { Lab } from '@snowflock/lab';
import { TAP_TABLE, VXLAN_TABLE } from '@snowflock/network';

/** Where a frame enters the rules. Emptied, they let everything pass. */
const ENTRIES = [`${TAP_TABLE} prerouting`, `${VXLAN_TABLE} input`];

export async function withoutRules<T>(lab: Lab, work: () => Promise<T>): Promise<T> {
  const nft = async (k: number, args: string[], input = ''): Promise<string> => {
    const { status, stdout, stderr } = await lab.exec(k, ['nft', ...args], { input });
    if (status !== 0) throw new Error(`nft ${args.join(' ')}: ${stderr}`);
    return stdout;
  };
  await using put = new AsyncDisposableStack();
  for (const { k } of lab.hosts)
    for (const entry of ENTRIES) {
      const saved = await nft(k, ['list', 'chain', ...entry.split(' ')]);
      await nft(k, ['flush', 'chain', ...entry.split(' ')]);
      put.defer(async () => void (await nft(k, ['-f', '-'], saved)));
    }
  return work();
}
