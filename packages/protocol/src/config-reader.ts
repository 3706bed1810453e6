// From a parsed configuration file to a checked object: known keys only, every problem with its place in the file.

import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { CONFIG_FILE_MAX_BYTES, configFail, type ConfigValue, type Position } from './config-lexer.ts';
import { parseConfigText, type ConfigEntry } from './config-parser.ts';
import { SnowflockError } from './errors.ts';

/** Reads text of bounded size; a directory, a pipe or bytes that are not UTF-8 are clear errors. */
export function readConfigText(path: string): string {
  let fd: number | undefined;
  try {
    // Non-blocking: a pipe without a writer must not hang the reader.
    fd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new SnowflockError('bad-config', `${path} is not a file`);
    if (stat.size > CONFIG_FILE_MAX_BYTES)
      throw new SnowflockError(
        'bad-config',
        `${path} has ${stat.size} bytes; a configuration file has at most ${CONFIG_FILE_MAX_BYTES}`,
      );
    return new TextDecoder('utf-8', { fatal: true }).decode(readFileSync(fd));
  } catch (error) {
    if (error instanceof SnowflockError) throw error;
    const code = (error as NodeJS.ErrnoException).code;
    const why =
      code === 'ENOENT'
        ? 'there is no such file'
        : code === 'ERR_ENCODING_INVALID_ENCODED_DATA'
          ? 'it is not UTF-8 text'
          : String(code ?? error);
    throw new SnowflockError('bad-config', `cannot read configuration file ${path}: ${why}`, {
      cause: error,
    });
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

type Shape = Readonly<Record<string, z.ZodType>>;

/** Checks a file's settings against a schema whose keys are the setting names. */
export function readConfig<S extends Shape>(
  text: string,
  fileName: string,
  shape: S,
): z.infer<z.ZodObject<S>> {
  const entries = parseConfigText(text, fileName);
  const fail = configFail(fileName);
  const known = Object.keys(shape);
  for (const [name, entry] of entries)
    if (!known.includes(name)) fail(entry, `unknown setting '${name}'${suggestion(name, known)}`);
  const missing = known.filter((name) => !entries.has(name) && !shape[name]?.safeParse(undefined).success);
  if (missing.length > 0)
    throw new SnowflockError(
      'bad-config',
      `${fileName}: missing ${missing.map((name) => `'${name}'`).join(', ')}; see docs/configuration.md`,
    );
  const values: Record<string, ConfigValue> = Object.fromEntries(
    [...entries].map(([name, entry]) => [name, entry.value]),
  );
  const parsed = z.object(shape).safeParse(values);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const [name = '', ...rest] = issue?.path ?? [];
  const path = rest.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`)).join('');
  return fail(
    place(entries.get(String(name)), path),
    `${String(name)}${path}: ${issue?.message ?? 'invalid'}`,
  );
}

function place(entry: ConfigEntry | undefined, path: string): Position {
  // A missing key has no place of its own: its dictionary has.
  for (let at = path; entry; at = at.replace(/(\[\d+\]|\.[^.[\]]*)$/, '')) {
    const found = entry.positions.get(at);
    if (found) return found;
    if (at === '') return entry;
  }
  return { line: 1, column: 1 };
}

/** ", did you mean 'vcpus'?" or a list of what there is. */
export function suggestion(name: string, known: readonly string[]): string {
  const close = known.filter(
    (each) => distance(name.toLowerCase(), each.toLowerCase()) <= Math.max(2, Math.floor(each.length / 4)),
  );
  if (close.length > 0) return `; did you mean ${close.map((each) => `'${each}'`).join(' or ')}?`;
  return `; known are ${known.map((each) => `'${each}'`).join(', ')}`;
}

/** Levenshtein distance; names beyond 64 characters are not close to anything. */
function distance(a: string, b: string): number {
  if (a.length > 64) return a.length;
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (const [i, charA] of [...a].entries()) {
    const next = [i + 1];
    for (const [j, charB] of [...b].entries())
      next.push(
        Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + (charA === charB ? 0 : 1)),
      );
    row = next;
  }
  return row[b.length] ?? 0;
}

/** A path in a configuration file is relative to that file. */
export function resolveFrom(fileName: string, path: string): string {
  return resolve(dirname(fileName), path);
}
