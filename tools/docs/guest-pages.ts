// Manual pages of the commands in a VM, of what also their --help is made of: the table in guest/c/tools/sfcmd.c, and the own texts
// of programs that have clones while they run.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { GUEST_COMMANDS } from '../../guest/image/src/index.ts';
import type { ManPage } from './man-page.ts';
import { proseOf, type ProseSection } from './prose.ts';

/** Programs in Python that have clones while they run: where their text lies, and what their exit statuses mean. */
const JOBS: Readonly<Record<string, { source: string; doc: string }>> = {
  sfmpirun: { source: 'guest/mpi/sfmpi/options.py', doc: 'docs/mpi.md' },
  sfdistcc: { source: 'guest/distcc/sfdistcc', doc: 'docs/distcc.md' },
};
const LITERALS = String.raw`(?:\s*(?:\\\n\s*)?"(?:[^"\\]|\\.)*")+`;
/** A row of the table: name, numbers of arguments, help as literals or by a macro's name. */
const ROW = new RegExp(String.raw`\{"(sf\w+)",[\s\w]+,[\s\w]+,\s*(${LITERALS}|[A-Z_]+)`, 'g');
const MACRO = new RegExp(String.raw`#define ([A-Z_]+HELP)\s*\\\n(${LITERALS})`, 'g');

function textOf(literals: string): string {
  const parts = [...literals.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, part = '']) => part);
  return parts.join('').replaceAll('\\n', '\n').replaceAll('\\"', '"');
}

/** What `--help` of each says after 'usage: '. */
function helpTexts(root: string): Map<string, string> {
  const read = (file: string): string => readFileSync(join(root, 'guest/c/tools', file), 'utf8');
  const macros = new Map(
    [...read('command.h').matchAll(MACRO)].map(([, name = '', text = '']) => [name, text]),
  );
  return new Map(
    [...read('sfcmd.c').matchAll(ROW)].map(([, name = '', help = '']) => [
      name,
      textOf(macros.get(help) ?? help),
    ]),
  );
}

/** What `--help` of one says after 'usage: '. */
function jobHelp(path: string): string {
  const source = readFileSync(path, 'utf8');
  const usage = /^USAGE = (?:\(\n)?((?: *"[^"]*"\n)+)/m.exec(source)?.[1] ?? '';
  const help = /^HELP = USAGE \+ """\n([^"]*)"""/m.exec(source)?.[1] ?? '';
  return `${textOf(usage).replace(/^usage: /, '')}\n${help.trim()}`;
}

export function guestPages(root: string, prose: readonly ProseSection[]): ManPage[] {
  const help = helpTexts(root);
  for (const [name, { source }] of Object.entries(JOBS)) help.set(name, jobHelp(join(root, source)));
  return [...GUEST_COMMANDS, ...Object.keys(JOBS)].map((name) => {
    const doc = JOBS[name]?.doc;
    const [usage, ...lines] = (help.get(name) ?? '').split('\n');
    if (!usage || lines.length === 0) throw new Error(`there is no help for ${name}`);
    const text = lines.join(' ');
    const [first = ''] = text.split(/(?<=\.)\s|;/);
    return {
      name,
      section: 1,
      summary: first.replace(/^[A-Z]/, (letter) => letter.toLowerCase()).replace(/\.$/, ''),
      synopsis: [usage],
      description: `${text}\n\n${proseOf(prose, name).text}`,
      lists: [],
      sections: [
        {
          title: 'EXIT STATUS',
          text: `- 0: it did what it was asked to.\n- 1: it did not; one line on standard error says why.\n- 2: it was used wrongly.${doc ? `\n- others: ${doc}.` : ''}`,
        },
        {
          title: 'ENVIRONMENT',
          text: '| name | meaning |\n| --- | --- |\n| `SNOWFLOCK_AGENT_SOCKET` | the socket of the agent, when it is not /run/snowflock/agent.sock |',
        },
      ],
    };
  });
}
