// Python's integer arithmetic, for configuration values such as 2*(1<<30). Bounded: every result is a safe integer.

import type { ConfigFail, ConfigValue, Token } from './config-lexer.ts';

const MAX = BigInt(Number.MAX_SAFE_INTEGER);
/** An exponent or left shift beyond this leaves the safe integers for any base but -1, 0 and 1. */
const POWER_MAX = 53n;

export function applyUnary(op: Token, value: ConfigValue, fail: ConfigFail): number {
  const operand = integer(op, value, fail);
  return checked(op, op.text === '-' ? -operand : op.text === '~' ? ~operand : operand, fail);
}

export function applyBinary(op: Token, left: ConfigValue, right: ConfigValue, fail: ConfigFail): number {
  return checked(op, compute(op, integer(op, left, fail), integer(op, right, fail), fail), fail);
}

function compute(op: Token, a: bigint, b: bigint, fail: ConfigFail): bigint {
  switch (op.text) {
    case '+':
      return a + b;
    case '-':
      return a - b;
    case '*':
      return a * b;
    case '|':
      return a | b;
    case '&':
      return a & b;
    case '^':
      return a ^ b;
    case '//':
    case '%': {
      if (b === 0n) fail(op, 'division by zero');
      // Python rounds towards minus infinity; the remainder has the divisor's sign.
      const remainder = ((a % b) + b) % b;
      return op.text === '%' ? remainder : (a - remainder) / b;
    }
    case '<<':
    case '>>':
    case '**': {
      if (b < 0n)
        fail(op, op.text === '**' ? 'an exponent cannot be negative' : 'a shift cannot be negative');
      if (op.text === '>>') return a >> (b > POWER_MAX + 1n ? POWER_MAX + 1n : b);
      if (op.text === '<<') return a === 0n ? 0n : b > POWER_MAX ? tooLarge(op, fail) : a << b;
      if (a >= -1n && a <= 1n) return b === 0n ? 1n : a === -1n && b % 2n === 0n ? 1n : a;
      return b > POWER_MAX ? tooLarge(op, fail) : a ** b;
    }
    default:
      return fail(op, `'${op.text}' is not an operator that is allowed here`);
  }
}

function integer(op: Token, value: ConfigValue, fail: ConfigFail): bigint {
  if (typeof value !== 'number') return fail(op, `'${op.text}' works on integers only`);
  return BigInt(value);
}

function tooLarge(op: Token, fail: ConfigFail): never {
  return fail(op, `the result of '${op.text}' is too large; integers reach from -(2**53 - 1) to 2**53 - 1`);
}

function checked(op: Token, result: bigint, fail: ConfigFail): number {
  return result > MAX || result < -MAX ? tooLarge(op, fail) : Number(result);
}
