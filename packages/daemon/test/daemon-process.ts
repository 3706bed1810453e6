// One daemon as a person meets it: its main.ts run with a configuration file in a directory of its own, with
// certificates of a throw-away CA.

import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TlsIdentity } from '@snowflock/protocol';

const COMMAND_TIMEOUT_MS = 90_000;

export interface CommandEnd {
  readonly status: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

export interface DaemonUnderTest extends Disposable {
  readonly dir: string;
  readonly config: string;
  /** Replaces the configuration: where things are, and these settings. */
  writeConfig(settings: string): void;
  command(...args: string[]): Promise<CommandEnd>;
}

export interface DaemonUnderTestOptions {
  readonly name: 'sfmd' | 'sfld';
  readonly tls: TlsIdentity;
  /** What runs node, as `ip netns exec NAME`. */
  readonly prefix?: readonly string[];
}

/** Whoever makes it, stops the daemon before disposing. */
export function daemonUnderTest({ name, tls, prefix = [] }: DaemonUnderTestOptions): DaemonUnderTest {
  const dir = mkdtempSync(join(tmpdir(), `snowflock-${name}-`));
  const config = join(dir, `${name}.cfg`);
  writeFileSync(join(dir, 'ca.crt'), tls.ca);
  writeFileSync(join(dir, 'host.crt'), tls.cert);
  writeFileSync(join(dir, 'host.key'), tls.key);
  const main = join(import.meta.dirname, `../src/${name}/main.ts`);
  return {
    dir,
    config,
    writeConfig(settings) {
      const places = `run_dir = 'run'
state_dir = 'state'
tls_ca = 'ca.crt'
tls_cert = 'host.crt'
tls_key = 'host.key'
`;
      writeFileSync(config, places + settings);
    },
    command(...args) {
      const [file = process.execPath, ...argv] = [
        ...prefix,
        process.execPath,
        main,
        ...args,
        '--config',
        config,
      ];
      return new Promise((resolve) => {
        execFile(file, argv, { timeout: COMMAND_TIMEOUT_MS }, (error, stdout, stderr) => {
          resolve({ status: error ? (error.code ?? String(error.signal)) : 0, stdout, stderr });
        });
      });
    },
    [Symbol.dispose]() {
      rmSync(dir, { recursive: true });
    },
  };
}

/** Empty when it is gone, also while nobody has reaped it. */
export function commandLineOf(pid: number | string): string {
  return existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : '';
}
