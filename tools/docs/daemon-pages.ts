// Manual pages of sfmd and sfld, of what their --help says.

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import type { Entry, ManPage } from './man-page.ts';
import { proseOf, type ProseSection } from './prose.ts';

const SUMMARIES = {
  sfmd: 'the master daemon of SnowFlock',
  sfld: 'the local daemon of a SnowFlock host',
} as const;

export function daemonPages(root: string, prose: readonly ProseSection[]): ManPage[] {
  return (['sfmd', 'sfld'] as const).map((name) => {
    const main = join(root, `packages/daemon/src/${name}/main.ts`);
    const help = execFileSync(process.execPath, [main, '--help'], { encoding: 'utf8' });
    const [usage = '', ...lines] = help.split('\n');
    const rows = lines.flatMap((line): Entry[] => {
      const [, term, text] = /^ {2}(\S.*?) {2,}(\S.*)$/.exec(line) ?? [];
      return term === undefined || text === undefined ? [] : [{ term, text }];
    });
    const rest = help.slice(help.lastIndexOf('\n\n') + 2);
    return {
      name,
      section: 8,
      summary: SUMMARIES[name],
      synopsis: [usage.replace(/^usage: /, '')],
      description: proseOf(prose, name).text,
      lists: [
        { title: 'COMMANDS', entries: rows.filter(({ term }) => !term.startsWith('-')) },
        { title: 'OPTIONS', entries: rows.filter(({ term }) => term.startsWith('-')) },
      ],
      sections: [{ title: 'CONFIGURATION', text: rest }],
    };
  });
}
