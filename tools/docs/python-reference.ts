// The reference of a Python module, of its docstrings: what __all__ names, in the order of the file.

const STRING = /"""([\s\S]*?)"""/;

export function pythonReference(source: string, options: { readonly title: string }): string {
  const names = [...(/__all__ = \[([\s\S]*?)\]/.exec(source)?.[1] ?? '').matchAll(/"(\w+)"/g)].map(
    (match) => match[1] ?? '',
  );
  const about = STRING.exec(source)?.[1] ?? '';
  const entries = names.map((name) => ({ name, at: positionOf(source, name) })).filter(({ at }) => at >= 0);
  entries.sort((a, b) => a.at - b.at);
  return [`# ${options.title}`, dedent(about), ...entries.map(({ at }) => entry(source.slice(at)))].join(
    '\n\n',
  );
}

function positionOf(source: string, name: string): number {
  return (
    new RegExp(`^(?:def ${name}\\(|class ${name}[(:]|${name} = namedtuple)`, 'm').exec(source)?.index ?? -1
  );
}

function entry(text: string): string {
  const tuple = /^(\w+) = namedtuple\("\w+", "([^"]*)"\)/.exec(text);
  if (tuple)
    return `### ${tuple[1] ?? ''}\n\nA named tuple: \`${(tuple[2] ?? '').replaceAll(' ', '`, `')}\`.`;
  const head = /^(def (\w+)\(.*?\)|class (\w+).*?):\n/s.exec(text);
  const doc = STRING.exec(text);
  const name = head?.[2] ?? head?.[3] ?? '';
  // A docstring belongs to what it follows at once.
  const after = text.slice(head?.[0].length ?? 0);
  const own = doc !== null && text.length - after.length + indentOf(after) === doc.index;
  const fields = /namedtuple\("\w+", "([^"]*)"\)/.exec(head?.[1] ?? '')?.[1];
  const signature =
    fields === undefined
      ? (head?.[1] ?? '')
      : `class ${name}  # a named tuple: ${fields.replaceAll(' ', ', ')}`;
  return `### ${name}\n\n\`\`\`python\n${signature}\n\`\`\`${own ? `\n\n${dedent(doc[1] ?? '')}` : ''}`;
}

function indentOf(text: string): number {
  return /^\s*/.exec(text)?.[0].length ?? 0;
}

function dedent(text: string): string {
  return text
    .trim()
    .split('\n')
    .map((line) => line.trim())
    .join('\n');
}
