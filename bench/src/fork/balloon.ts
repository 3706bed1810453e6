// Avoidance turned off: a guest that does not report its free pages, so that what it once used and has freed counts as in use.

import type { ControlClient } from '@snowflock/protocol';
import { GuestProgram } from './guest-program.ts';

const DRIVER = '/sys/bus/virtio/drivers/virtio_balloon';
const GIVE_UP = `cd ${DRIVER} && for device in virtio*; do echo "$device" > unbind; done; ls -d virtio* 2>/dev/null || echo none`;

/** The guest gives up its balloon device, by which it reports; at once after boot, so that nothing has been reported. */
export async function giveUpBalloon(client: ControlClient, vm: string): Promise<void> {
  await using shell = await GuestProgram.start(client, vm, ['sh']);
  const left = await shell.ask(GIVE_UP);
  if (left !== 'none') throw new Error(`VM ${vm} keeps its balloon: ${left}`);
}
