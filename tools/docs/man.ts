// Manual pages of every command, into man/: `man` finds them there when bin/ is in the PATH.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { commandPages } from './command-pages.ts';
import { daemonPages } from './daemon-pages.ts';
import { guestPages } from './guest-pages.ts';
import type { MadeFile } from './made-file.ts';
import { renderManPage } from './man-page.ts';
import { proseSections } from './prose.ts';

/** Of the version in package.json. */
const RELEASED = '2026-11-27';

export async function manPages(root: string): Promise<MadeFile[]> {
  const prose = proseSections(readFileSync(join(root, 'docs/commands.md'), 'utf8'));
  const { version } = z
    .object({ version: z.string() })
    .parse(JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')));
  const others = [...daemonPages(root, prose), ...guestPages(root, prose)];
  const pages = [...commandPages(prose, others), ...others];
  return pages.map((page) => ({
    path: `man/man${page.section}/${page.name}.${page.section}`,
    text: renderManPage(page, { version, date: RELEASED }),
  }));
}
