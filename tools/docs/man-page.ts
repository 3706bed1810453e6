// A manual page, and how it is written: man(7), which man-db and mandoc both read.

import { markdownToRoff } from './markdown-roff.ts';
import { bold, escapeLine, escapeWords, italic } from './roff.ts';

export interface Entry {
  /** As people type it: `--hosts <n>`. */
  readonly term: string;
  readonly text: string;
}

export interface ManPage {
  readonly name: string;
  readonly section: 1 | 8;
  readonly summary: string;
  readonly synopsis: readonly string[];
  /** Markdown. */
  readonly description: string;
  /** Lists, as OPTIONS and COMMANDS. */
  readonly lists: readonly { readonly title: string; readonly entries: readonly Entry[] }[];
  /** Further sections, in Markdown. */
  readonly sections: readonly { readonly title: string; readonly text: string }[];
}

export function renderManPage(
  page: ManPage,
  release: { readonly version: string; readonly date: string },
): string {
  const { name, section, summary, synopsis, description, lists, sections } = page;
  const title = escapeWords(name.toUpperCase());
  const lines = [
    '.\\" Made by npm run docs; do not edit.',
    `.TH "${title}" ${section} "${release.date}" "SnowFlock ${release.version}" "SnowFlock"`,
    '.SH NAME',
    `${escapeWords(name)} \\- ${escapeLine(summary)}`,
    '.SH SYNOPSIS',
    ...synopsis.flatMap((usage, at) => [...(at > 0 ? ['.br'] : []), usageLine(usage)]),
    '.SH DESCRIPTION',
    ...markdownToRoff(description),
  ];
  for (const list of lists)
    if (list.entries.length > 0) lines.push(`.SH ${list.title}`, ...list.entries.flatMap(entryLines));
  for (const { title: heading, text } of sections) lines.push(`.SH ${heading}`, ...markdownToRoff(text));
  if (name !== 'snowflock') lines.push('.SH SEE ALSO', `${bold('snowflock')}(1)`);
  return `${lines.join('\n')}\n`;
}

/** The first word bold, <placeholders> and CAPITALS italic. */
function usageLine(usage: string): string {
  const [command = '', ...words] = usage.split(' ');
  return [bold(command), ...words.map(usageWord)].join(' ');
}

function usageWord(word: string): string {
  const match = /^([[(]?)([^\])]*)([\])]?\.*[\])]?)$/.exec(word);
  const [, open = '', inner = word, close = ''] = match ?? [];
  return open + (/^<|^[A-Z]/.test(inner) ? italic(inner.replace(/[<>]/g, '')) : escapeWords(inner)) + close;
}

function entryLines({ term, text }: Entry): string[] {
  const [first = '', ...rest] = term.split(/ (?=[<[])/);
  const value = rest.map((word) => ` ${usageWord(word)}`).join('');
  return ['.TP', `${bold(first)}${value}`, ...text.split('\n').map(escapeLine)];
}
