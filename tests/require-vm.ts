// What the *.vm.test.ts files need of the machine. Without it they are skipped with a printed reason, or fail when
// SNOWFLOCK_REQUIRE_VM=1 (which CI sets).

import { accessSync, constants } from 'node:fs';
import { delimiter, join } from 'node:path';

export type VmNeed = 'root' | 'fuse' | 'tun' | 'qemu' | 'ip' | 'nft' | 'sshd' | 'systemd' | 'systemd-nspawn';

const EVERYTHING: readonly VmNeed[] = ['root', 'fuse', 'tun', 'qemu', 'ip', 'nft'];

function usable(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false; // missing and not permitted come to the same here
  }
}

function onPath(program: string): boolean {
  const folders = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return folders.some((folder) => folder !== '' && usable(join(folder, program), constants.X_OK));
}

const CHECKS: Record<VmNeed, { readonly ok: () => boolean; readonly missing: string }> = {
  root: { ok: () => process.getuid?.() === 0, missing: 'root' },
  fuse: { ok: () => usable('/dev/fuse', constants.R_OK | constants.W_OK), missing: '/dev/fuse' },
  tun: { ok: () => usable('/dev/net/tun', constants.R_OK | constants.W_OK), missing: '/dev/net/tun' },
  qemu: { ok: () => onPath('qemu-system-x86_64'), missing: 'qemu-system-x86_64' },
  ip: { ok: () => onPath('ip'), missing: 'iproute2' },
  nft: { ok: () => onPath('nft'), missing: 'nftables' },
  sshd: { ok: () => onPath('sshd') && onPath('ssh'), missing: 'openssh-server and openssh-client' },
  systemd: { ok: () => onPath('systemd-analyze'), missing: 'systemd' },
  'systemd-nspawn': { ok: () => onPath('systemd-nspawn'), missing: 'systemd-container' },
};

/** What of `needs` this machine lacks, in words; empty when the tests can run. */
export function missingForVm(needs: readonly VmNeed[] = EVERYTHING): string[] {
  return needs.filter((need) => !CHECKS[need].ok()).map((need) => CHECKS[need].missing);
}

/**
 * True when the VM tests can run; use as `describe.skipIf(!requireVm())`. Otherwise prints why they are skipped, or
 * throws when SNOWFLOCK_REQUIRE_VM=1.
 */
export function requireVm(needs: readonly VmNeed[] = EVERYTHING): boolean {
  const missing = missingForVm(needs);
  if (missing.length === 0) return true;
  const reason = `this machine lacks ${missing.join(', ')}`;
  if (process.env.SNOWFLOCK_REQUIRE_VM === '1')
    throw new Error(`SNOWFLOCK_REQUIRE_VM=1, but ${reason}; run npm run setup as root`);
  console.warn(`skipped: ${reason}`);
  return false;
}
