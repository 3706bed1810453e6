// docs/api-reference/: what programs may call, in each language, of the comments in the sources.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { format, resolveConfig } from 'prettier';
import { cReference } from './c-reference.ts';
import type { MadeFile } from './made-file.ts';
import { pythonReference } from './python-reference.ts';
import { TypescriptReference } from './typescript-reference.ts';

const FOLDER = 'docs/api-reference';

export async function apiReference(root: string): Promise<MadeFile[]> {
  const read = (path: string): string => readFileSync(join(root, path), 'utf8');
  const errors = read('guest/python/snowflock/_errors.py').replace(/^"""[\s\S]*?"""/, '');
  const python = (file: string, title: string): string =>
    pythonReference(read(`guest/python/snowflock/${file}`) + errors, { title });
  const [inVm, onHost] = [
    join(root, 'guest/typescript/snowflock.d.mts'),
    join(root, 'packages/sdk/src/index.ts'),
  ];
  const typescript = new TypescriptReference([inVm, onHost], join(root, 'tsconfig.json'));
  const texts = {
    'c.md': cReference(read('guest/c/lib/sf.h')),
    'python-vm.md': python('domUapi.py', 'Python in a VM: snowflock.domUapi'),
    'python-host.md': python('dom0api.py', 'Python on a host: snowflock.dom0api'),
    'typescript-vm.md': typescript.of(inVm, {
      title: 'TypeScript in a VM: snowflock',
      about:
        '`guest/typescript`; in an image `/usr/lib/node_modules/snowflock`. Every failure is a SnowflockError.',
    }),
    'typescript-host.md': typescript.of(onHost, {
      title: 'TypeScript on a host: @snowflock/sdk',
      about: 'Every failure is a SnowflockError.',
    }),
  };
  const options = await resolveConfig(join(root, 'x.md'));
  return Promise.all(
    Object.entries(texts).map(async ([file, text]) => ({
      path: `${FOLDER}/${file}`,
      text: await format(`<!-- Made by npm run docs; do not edit. -->\n\n${text}\n`, {
        ...options,
        parser: 'markdown',
      }),
    })),
  );
}
