// Configuration files in the manual's syntax (sections 4, 11, 12): Python assignments of literals and integer arithmetic.
// They are parsed, never executed: there is no name lookup, no call, no operator on anything but integers.
//
//   file   := { NAME '=' value NEWLINE }
//   value  := string | True | False | None | list | tuple | dict | or
//   or     := xor { '|' xor }        xor := and { '^' and }           and := shift { '&' shift }
//   shift  := sum { ('<<'|'>>') sum }   sum := term { ('+'|'-') term }   term := unary { ('*'|'//'|'%') unary }
//   unary  := ('+'|'-'|'~') unary | power                             power := atom [ '**' unary ]
//
// Invariants: the work is linear in the file's size; recursion is bounded by NESTING_MAX; every integer, also in between,
// is a safe one.

import { configFail, tokenize } from './config-lexer.ts';
import type { ConfigDict, ConfigFail, ConfigValue, Position, Token } from './config-lexer.ts';
import { applyBinary, applyUnary } from './config-arithmetic.ts';

/** Of brackets, signs and powers; the deepest real file has three. */
const NESTING_MAX = 32;

export interface ConfigEntry extends Position {
  readonly value: ConfigValue;
  /** Where each part of the value stands, by its path: '', '[0]', '[0].cpus'. */
  readonly positions: ReadonlyMap<string, Position>;
}

/** Parses a whole file; line and column are those of the name. Throws bad-config as `FILE:LINE:COLUMN: message`. */
export function parseConfigText(text: string, fileName: string): Map<string, ConfigEntry> {
  const fail = configFail(fileName);
  return new Parser(tokenize(text, fail), fail).file();
}

/** Parses one value that stands by itself. */
export function parseConfigValue(text: string, fail: ConfigFail): ConfigEntry {
  return new Parser(tokenize(text, fail), fail).single();
}

const ALLOWED =
  'allowed are strings, integers and their arithmetic, True, False, None, lists, tuples and dictionaries';
const BINARY = [['|'], ['^'], ['&'], ['<<', '>>'], ['+', '-'], ['*', '//', '%']] as const;

class Parser {
  readonly #tokens: readonly Token[];
  readonly #fail: ConfigFail;
  readonly #open: Token[] = [];
  #next = 0;
  #depth = 0;
  #path = '';
  #positions = new Map<string, Position>();

  constructor(tokens: readonly Token[], fail: ConfigFail) {
    this.#tokens = tokens;
    this.#fail = fail;
  }

  file(): Map<string, ConfigEntry> {
    const entries = new Map<string, ConfigEntry>();
    for (;;) {
      while (this.#peek().kind === 'newline') this.#take();
      const name = this.#take();
      if (name.kind === 'end') return entries;
      if (name.kind !== 'name' || !this.#isOp('=') || this.#isOp('=', 1))
        this.#fail(
          name,
          'this is not a setting; a line must be NAME = VALUE (the file is read, never executed)',
        );
      if (name.column > 1 && name.spaced)
        this.#fail(name, `'${name.text}' is indented; a setting begins at the start of its line`);
      const first = entries.get(name.text);
      if (first) this.#fail(name, `'${name.text}' is set twice, first in line ${first.line}`);
      this.#take();
      this.#positions = new Map();
      const value = this.#value('');
      const after = this.#peek();
      if (after.kind !== 'newline')
        this.#fail(after, `unexpected ${shown(after)} after the value of '${name.text}'${hint(after)}`);
      entries.set(name.text, { value, line: name.line, column: name.column, positions: this.#positions });
    }
  }

  single(): ConfigEntry {
    const value = this.#value('');
    while (this.#peek().kind === 'newline') this.#take();
    const after = this.#peek();
    if (after.kind !== 'end') this.#fail(after, `unexpected ${shown(after)} after the value${hint(after)}`);
    return { value, line: 1, column: 1, positions: this.#positions };
  }

  #peek(ahead = 0): Token {
    const token = this.#tokens[Math.min(this.#next + ahead, this.#tokens.length - 1)];
    if (!token) throw new Error('the token list has no end token');
    if (token.error && ahead === 0) throw token.error;
    return token;
  }

  #take(): Token {
    const token = this.#peek();
    this.#next += 1;
    return token;
  }

  #isOp(text: string, ahead = 0): boolean {
    const token = this.#peek(ahead);
    return token.kind === 'op' && token.text === text;
  }

  #takeOp(texts: readonly string[]): Token | null {
    const token = this.#peek();
    return token.kind === 'op' && texts.includes(token.text) ? this.#take() : null;
  }

  #deeper<T>(at: Position, work: () => T): T {
    this.#depth += 1;
    if (this.#depth > NESTING_MAX) this.#fail(at, `nested deeper than ${NESTING_MAX}`);
    const result = work();
    this.#depth -= 1;
    return result;
  }

  #value(path: string): ConfigValue {
    const outer = this.#path;
    this.#path = path;
    this.#positions.set(path, { line: this.#peek().line, column: this.#peek().column });
    const value = this.#binary(0);
    this.#path = outer;
    return value;
  }

  #binary(level: number): ConfigValue {
    const operators = BINARY[level];
    if (!operators) return this.#unary();
    let left = this.#binary(level + 1);
    for (let op = this.#takeOp(operators); op; op = this.#takeOp(operators))
      left = applyBinary(op, left, this.#binary(level + 1), this.#fail);
    return left;
  }

  #unary(): ConfigValue {
    const op = this.#takeOp(['+', '-', '~']);
    if (op) return this.#deeper(op, () => applyUnary(op, this.#unary(), this.#fail));
    const base = this.#atom();
    const power = this.#takeOp(['**']);
    return power ? this.#deeper(power, () => applyBinary(power, base, this.#unary(), this.#fail)) : base;
  }

  #atom(): ConfigValue {
    const token = this.#take();
    if (token.kind === 'string') return token.text;
    if (token.kind === 'int') {
      if (token.int > BigInt(Number.MAX_SAFE_INTEGER))
        this.#fail(token, `${token.text} is too large; at most 2**53 - 1 is allowed`);
      return Number(token.int);
    }
    if (token.kind === 'name') return this.#name(token);
    if (token.text === '[') return this.#deeper(token, () => this.#items(token, ']').items);
    if (token.text === '{') return this.#deeper(token, () => this.#dict(token));
    if (token.text === '(')
      return this.#deeper(token, () => {
        const { items, comma } = this.#items(token, ')');
        const only = items[0];
        return items.length === 1 && !comma && only !== undefined ? only : items;
      });
    const unclosed = this.#open.at(-1);
    if (token.kind === 'end' && unclosed) this.#fail(unclosed, `'${unclosed.text}' is never closed`);
    return this.#fail(token, `a value is missing before ${shown(token)}; ${ALLOWED}`);
  }

  #name(token: Token): ConfigValue {
    if (token.text === 'True') return true;
    if (token.text === 'False') return false;
    if (token.text === 'None') return null;
    const next = this.#peek();
    const unclosed = this.#open.at(-1);
    if (unclosed && this.#isOp('='))
      this.#fail(unclosed, `'${unclosed.text}' is not closed before '${token.text} =' in line ${token.line}`);
    if (next.kind === 'string' && !next.spaced)
      this.#fail(token, `string prefixes are not allowed; write the string without '${token.text}'`);
    if (this.#isOp('('))
      this.#fail(token, `'${token.text}(' looks like a call, and nothing here is executed; ${ALLOWED}`);
    return this.#fail(token, `'${token.text}' is a name, not a value; ${ALLOWED} (strings need quotes)`);
  }

  /** Up to and with the closing bracket; `comma`: one stood after the last item. */
  #items(open: Token, close: string): { items: ConfigValue[]; comma: boolean } {
    const items: ConfigValue[] = [];
    const path = this.#path;
    let comma = false;
    this.#open.push(open);
    while (!this.#takeOp([close])) {
      if (items.length > 0 && !comma) this.#missingComma(close);
      items.push(this.#value(`${path}[${items.length}]`));
      comma = this.#takeOp([',']) !== null;
    }
    this.#open.pop();
    return { items, comma };
  }

  #dict(open: Token): ConfigDict {
    const dict = Object.create(null) as Record<string, ConfigValue>;
    const path = this.#path;
    let comma = true;
    this.#open.push(open);
    while (!this.#takeOp(['}'])) {
      if (!comma) this.#missingComma('}');
      const key = this.#peek();
      const name = this.#value(path);
      if (typeof name !== 'string') return this.#fail(key, 'the keys of a dictionary are strings in quotes');
      if (name in dict) this.#fail(key, `'${name}' stands twice in this dictionary`);
      if (!this.#takeOp([':'])) this.#fail(this.#peek(), `':' is missing after '${name}'`);
      dict[name] = this.#value(`${path}.${name}`);
      comma = this.#takeOp([',']) !== null;
    }
    this.#positions.set(path, { line: open.line, column: open.column });
    this.#open.pop();
    return dict;
  }

  #missingComma(close: string): never {
    const token = this.#peek();
    const unclosed = this.#open.at(-1);
    if (unclosed && token.kind === 'end') this.#fail(unclosed, `'${unclosed.text}' is never closed`);
    if (unclosed && token.kind === 'name' && this.#isOp('=', 1))
      this.#fail(unclosed, `'${unclosed.text}' is not closed before '${token.text} =' in line ${token.line}`);
    return this.#fail(token, `',' or '${close}' is missing before ${shown(token)}${hint(token)}`);
  }
}

function shown(token: Token): string {
  if (token.kind === 'newline') return 'the end of the line';
  if (token.kind === 'end') return token.text;
  return token.kind === 'string' ? `the string '${token.text}'` : `'${token.text}'`;
}

function hint(token: Token): string {
  if (token.kind === 'name' && ['for', 'if', 'in', 'and', 'or', 'not', 'is', 'lambda'].includes(token.text))
    return `; ${ALLOWED}`;
  return token.text === '[' || token.text === '(' ? '; indexing and calls are not allowed' : '';
}
