// Sections of docs/commands.md, which are the descriptions of manual pages.

/** `## snowflock lab up · status · down`: the words before the first argument or option say which commands it is about. */
export interface ProseSection {
  readonly heading: string;
  readonly commands: readonly string[];
  readonly text: string;
}

export function proseSections(markdown: string): ProseSection[] {
  const sections: { heading: string; lines: string[] }[] = [];
  let inCode = false;
  let current: { heading: string; lines: string[] } | undefined;
  for (const line of markdown.split('\n')) {
    if (line.startsWith('```')) inCode = !inCode;
    if (!inCode && line.startsWith('# ')) current = undefined;
    else if (!inCode && line.startsWith('## '))
      sections.push((current = { heading: line.slice(3), lines: [] }));
    else current?.lines.push(line);
  }
  return sections.map(({ heading, lines }) => ({
    heading,
    commands: commandsOf(heading),
    text: lines.join('\n').trim(),
  }));
}

/** `snowflock image build [NAME...] · image list` names snowflock-image; `sfld, sfmd: start` names sfld and sfmd. */
function commandsOf(heading: string): string[] {
  const [before = ''] = heading.split(': ');
  const names = before.split(/ · |, /).map((part) => /^[a-z -]*[a-z](?![a-z])/.exec(part)?.[0]?.trim() ?? '');
  const [first = ''] = names;
  if (!first.startsWith('snowflock ')) return names.filter((name) => /^[a-z-]+$/.test(name));
  const words = names.map((name) => name.replace(/^snowflock /, '').split(' ')[0] ?? '');
  return [...new Set(words)].map((word) => `snowflock-${word}`);
}

/** The prose for a command; throws when there is none. `own`: it is about this command alone. */
export function proseOf(sections: readonly ProseSection[], name: string): { text: string; own: boolean } {
  const section = sections.find(({ commands }) => commands.includes(name));
  if (!section) throw new Error(`docs/commands.md has no section about ${name}`);
  return { text: section.text, own: section.commands.length === 1 };
}
