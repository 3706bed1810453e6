// From configuration file, environment and flags to a checked object: known keys only, every problem with its place.

import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { z } from 'zod';
import { CONFIG_FILE_MAX_BYTES, configFail, type ConfigFail, type Position } from './config-lexer.ts';
import { parseConfigText, parseConfigValue, type ConfigEntry } from './config-parser.ts';
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

/** Options whose values are paths: relative to the file that they stand in, or to the working directory. */
const PATH_OPTIONS: ReadonlySet<string> = new Set([
  ...['state_dir', 'run_dir', 'tls_ca', 'tls_cert', 'tls_key', 'authority_dir'],
]);

type Shape = Readonly<Record<string, z.ZodType>>;

/** Checks a file's settings against a schema whose keys are the setting names. */
export function readConfig<S extends Shape>(
  text: string,
  fileName: string,
  shape: S,
): z.infer<z.ZodObject<S>> {
  return readLayers({ fileName, text }, shape).values;
}

/** Where a daemon's options come from, strongest last: default, file, environment, flags. */
export interface ConfigSources {
  readonly fileName: string;
  /** Null: there is no such file, and nobody asked for it by name. */
  readonly text: string | null;
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** By option name, without the dashes. */
  readonly flags?: Readonly<Record<string, string | undefined>>;
}

export interface EffectiveOption {
  readonly name: string;
  readonly value: unknown;
  /** For people: a place in the file, a variable, a flag, or 'default'. */
  readonly origin: string;
}

export interface ConfigRead<T> {
  readonly values: T;
  readonly effective: readonly EffectiveOption[];
}

interface Setting {
  readonly entry: ConfigEntry;
  readonly origin: string;
  readonly fail: ConfigFail;
  /** Paths are relative to the folder of this. */
  readonly base: string;
}

/** Merges the layers and checks the result; every problem is told with the place that it comes from. */
export function readLayers<S extends Shape>(
  { fileName, text, env = {}, flags = {} }: ConfigSources,
  shape: S,
): ConfigRead<z.infer<z.ZodObject<S>>> {
  const known = Object.keys(shape);
  const settings = new Map<string, Setting>();
  const failInFile = configFail(fileName);
  for (const [name, entry] of text === null ? [] : parseConfigText(text, fileName)) {
    if (!known.includes(name)) failInFile(entry, `unknown setting '${name}'${suggestion(name, known)}`);
    const origin = `${fileName}:${entry.line}`;
    settings.set(name, { entry, origin, fail: failInFile, base: fileName });
  }
  for (const name of known) {
    const variable = variableOf(name);
    for (const [origin, value] of [
      [variable, env[variable]],
      [flagOf(name), flags[name]],
    ] as const)
      if (value !== undefined) settings.set(name, outside({ name, origin, value, schema: shape[name] }));
  }
  const missing = known.filter((name) => !settings.has(name) && !shape[name]?.safeParse(undefined).success);
  if (missing.length > 0)
    throw new SnowflockError(
      'bad-config',
      `${fileName}: ${text === null ? 'there is no such file, and ' : ''}missing ${missing.map((name) => `'${name}'`).join(', ')}; ` +
        `see docs/configuration.md`,
    );
  const given = Object.fromEntries(
    [...settings].map(([name, { entry, base }]) => {
      const { value } = entry;
      return [
        name,
        PATH_OPTIONS.has(name) && typeof value === 'string' && value !== ''
          ? resolveFrom(base, value)
          : value,
      ];
    }),
  );
  const parsed = z.object(shape).safeParse(given);
  if (parsed.success) {
    const values: Record<string, unknown> = parsed.data;
    const effective = known.map((name) => ({
      name,
      value: values[name] ?? null,
      origin: settings.get(name)?.origin ?? 'default',
    }));
    return { values: parsed.data, effective };
  }
  const issue = parsed.error.issues[0];
  const [name = '', ...rest] = issue?.path ?? [];
  const path = rest.map((part) => (typeof part === 'number' ? `[${part}]` : `.${String(part)}`)).join('');
  const setting = settings.get(String(name));
  return (setting?.fail ?? failInFile)(
    place(setting?.entry, path),
    `${String(name)}${path}: ${issue?.message ?? 'invalid'}`,
  );
}

/** SNOWFLOCK_MASTER_PORT */
export function variableOf(name: string): string {
  return `SNOWFLOCK_${name.toUpperCase()}`;
}

/** --master-port */
export function flagOf(name: string): string {
  return `--${name.replaceAll('_', '-')}`;
}

/** A value in the file's syntax, from outside of it; what is a string anyway needs no quotes. */
function outside(from: {
  name: string;
  origin: string;
  value: string;
  schema: z.ZodType | undefined;
}): Setting {
  const { name, origin, value, schema } = from;
  const fail: ConfigFail = (_at, message) => {
    throw new SnowflockError('bad-config', `${origin}: ${message}`);
  };
  if (value.length > CONFIG_FILE_MAX_BYTES)
    fail({ line: 1, column: 1 }, `has more than ${CONFIG_FILE_MAX_BYTES} characters`);
  return { entry: valueFrom(value, schema, fail), origin, base: resolve(name), fail };
}

function valueFrom(value: string, schema: z.ZodType | undefined, fail: ConfigFail): ConfigEntry {
  const bare: ConfigEntry = { value, line: 1, column: 1, positions: new Map() };
  const quoted = /^\s*['"]/.test(value);
  if (!quoted && value !== 'None' && schema?.safeParse(value).success) return bare;
  try {
    return parseConfigValue(value, fail);
  } catch (error) {
    // A plain word: what is allowed there, the schema says better.
    if (/^[\w.:/-]+$/.test(value)) return bare;
    throw error;
  }
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
