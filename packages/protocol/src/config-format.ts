// The effective configuration in the files' own syntax, each value with where it comes from: what --check prints.

import type { EffectiveOption } from './config-reader.ts';

/** A value as the files have it. */
export function formatConfigValue(value: unknown): string {
  if (value === null || value === undefined) return 'None';
  if (typeof value === 'boolean') return value ? 'True' : 'False';
  if (typeof value === 'string') return quote(value);
  if (Array.isArray(value)) return `[${value.map(formatConfigValue).join(', ')}]`;
  if (typeof value === 'object')
    return `{${Object.entries(value)
      .map(([key, each]) => `${quote(key)}: ${formatConfigValue(each)}`)
      .join(', ')}}`;
  return typeof value === 'number' ? String(value) : 'None';
}

function quote(text: string): string {
  const escaped = text
    .replaceAll('\\', '\\\\')
    .replaceAll("'", "\\'")
    .replace(/[\0-\x1f\x7f]/g, (char) => `\\x${char.charCodeAt(0).toString(16).padStart(2, '0')}`);
  return `'${escaped}'`;
}

/** One line for each option; those without a value stand as comments, so that the whole is a valid file. */
export function formatEffective(options: readonly EffectiveOption[]): string {
  return options
    .map(({ name, value, origin }) => {
      const line = `${name} = ${formatConfigValue(value)}`;
      return `${value === null ? `# ${line}` : line}  # ${origin}`;
    })
    .join('\n');
}
