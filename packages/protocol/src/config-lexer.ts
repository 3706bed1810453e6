// Tokens of a configuration file: the small part of Python's lexical grammar that literals need.

import { SnowflockError } from './errors.ts';

/** Larger than any configuration of thousands of hosts; bounds all work that follows. */
export const CONFIG_FILE_MAX_BYTES = 1 << 20;

export type ConfigValue = null | boolean | number | string | readonly ConfigValue[] | ConfigDict;
/** Without a prototype: any string is a safe key. */
export interface ConfigDict {
  readonly [key: string]: ConfigValue;
}

export interface Position {
  /** Both count from 1; a column is a UTF-16 unit. */
  readonly line: number;
  readonly column: number;
}

export interface Token extends Position {
  readonly kind: 'name' | 'int' | 'string' | 'op' | 'newline' | 'end' | 'bad';
  /** As written; for a string, its value. */
  readonly text: string;
  /** Whether whitespace stands before it on its line. */
  readonly spaced: boolean;
  /** Of an int, unsigned. */
  readonly int: bigint;
  /** Of 'bad', the last token of its file: what is wrong there, raised when the parser gets that far. */
  readonly error?: SnowflockError;
}

/** Raises bad-config as `FILE:LINE:COLUMN: message`. */
export type ConfigFail = (at: Position, message: string) => never;

export function configFail(fileName: string): ConfigFail {
  return ({ line, column }, message) => {
    throw new SnowflockError('bad-config', `${fileName}:${line}:${column}: ${message}`);
  };
}

const OPERATORS = ['**', '//', '<<', '>>', ...'+-*%|&^~()[]{},:='];
const OPEN = '([{';
const CLOSE = ')]}';
const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  '0': '\0',
  '\\': '\\',
  "'": "'",
  '"': '"',
};

/** Splits text into tokens; newlines inside brackets vanish, as in Python. */
export function tokenize(text: string, fail: ConfigFail): Token[] {
  const tokens: Token[] = [];
  try {
    scan(tokens, text, fail);
  } catch (error) {
    if (!(error instanceof SnowflockError)) throw error;
    tokens.push({ kind: 'bad', text: '', spaced: false, int: 0n, line: 0, column: 0, error });
  }
  return tokens;
}

function scan(tokens: Token[], text: string, fail: ConfigFail): void {
  const open: Position[] = [];
  let offset = text.startsWith('\ufeff') ? 1 : 0;
  let lineStart = offset;
  let line = 1;
  const here = (): Position => ({ line, column: offset - lineStart + 1 });
  const add = (kind: Token['kind'], value: string, length: number, int = 0n): void => {
    const spaced = /[ \t]/.test(text[offset - 1] ?? '');
    tokens.push({ kind, text: value, spaced, int, ...here() });
    offset += length;
  };
  while (offset < text.length) {
    const char = text.charAt(offset);
    if (char === '\n') {
      if (open.length === 0) add('newline', '', 1);
      else offset += 1;
      line += 1;
      lineStart = offset;
    } else if (char === ' ' || char === '\t' || (char === '\r' && text[offset + 1] === '\n')) offset += 1;
    else if (char === '#') while (offset < text.length && text[offset] !== '\n') offset += 1;
    else if (/[A-Za-z_]/.test(char)) {
      const name = match(/[A-Za-z0-9_]+/y, text, offset);
      add('name', name, name.length);
    } else if (/[0-9]/.test(char)) {
      const digits = match(/[0-9A-Za-z_.]+/y, text, offset);
      add('int', digits, digits.length, readInt(digits, here(), fail));
    } else if (char === '"' || char === "'") {
      const { value, length } = readString(text, offset, here(), fail);
      add('string', value, length);
    } else {
      const op = OPERATORS.find((each) => text.startsWith(each, offset));
      if (op === undefined) return fail(here(), badCharacter(char));
      if (OPEN.includes(op)) open.push(here());
      if (CLOSE.includes(op)) open.pop();
      add('op', op, op.length);
    }
  }
  if (open.length === 0) add('newline', '', 0);
  add('end', 'the end of the file', 0);
}

function match(pattern: RegExp, text: string, offset: number): string {
  pattern.lastIndex = offset;
  return pattern.exec(text)?.[0] ?? '';
}

function badCharacter(char: string): string {
  if (char === '/') return "'/' is not allowed; for integer division write //";
  if (char === '\\') return 'a line cannot be continued with \\; put the value in brackets instead';
  if (char === ';') return "';' is not allowed; write each setting on its own line";
  const shown = /[\x20-\x7e]/.test(char)
    ? `'${char}'`
    : `character U+${(char.codePointAt(0) ?? 0).toString(16).padStart(4, '0')}`;
  return `${shown} is not allowed here; only literals, integer arithmetic and # comments are`;
}

const INTEGER = /^(0[xX](_?[0-9a-fA-F])+|0[oO](_?[0-7])+|0[bB](_?[01])+|[1-9](_?[0-9])*|0(_?0)*)$/;
/** Digits of the longest integer that could still be a safe one, in binary with its prefix and underscores. */
const INTEGER_TEXT_MAX = 128;

function readInt(digits: string, at: Position, fail: ConfigFail): bigint {
  if (digits.includes('.') || /^[0-9_]+[eE]/.test(digits))
    return fail(at, `'${digits}' is not a whole number; only integers are allowed`);
  if (/^0[0-9_]*[1-9]/.test(digits))
    return fail(at, `'${digits}' begins with 0; for an octal number write 0o${digits.replace(/^0+/, '')}`);
  if (digits.length > INTEGER_TEXT_MAX)
    return fail(at, 'this integer is too long; at most 2**53 - 1 is allowed');
  if (!INTEGER.test(digits))
    return fail(at, `'${digits}' is not a number; write it as 256, 0x100, 0o400, 0b1 or 1_000`);
  return BigInt(digits.replaceAll('_', ''));
}

function readString(
  text: string,
  start: number,
  at: Position,
  fail: ConfigFail,
): { value: string; length: number } {
  const quote = text.charAt(start);
  if (text.startsWith(quote.repeat(3), start)) return fail(at, 'triple-quoted strings are not allowed');
  let value = '';
  let offset = start + 1;
  for (;;) {
    const char = text.charAt(offset);
    if (char === '' || char === '\n') return fail(at, `this string has no closing ${quote} on its line`);
    if (char === quote) return { value, length: offset + 1 - start };
    if (char !== '\\') {
      value += char;
      offset += 1;
      continue;
    }
    const hex = /^\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))/.exec(text.slice(offset, offset + 6));
    const code = hex?.[1] ?? hex?.[2];
    const escape = ESCAPES[text.charAt(offset + 1)];
    if (hex && code !== undefined) {
      value += String.fromCharCode(Number.parseInt(code, 16));
      offset += hex[0].length;
    } else if (escape !== undefined) {
      value += escape;
      offset += 2;
    } else {
      const column = at.column + offset - start;
      return fail(
        { line: at.line, column },
        'unknown escape; allowed are \\\\ \\\' \\" \\n \\r \\t \\0 \\xHH \\uHHHH',
      );
    }
  }
}
