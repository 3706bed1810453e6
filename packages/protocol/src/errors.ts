// One error class for everything that crosses a process boundary. Codes are closed: a caller may switch on them.

export const ERROR_CODES = [
  // the caller's input
  'bad-request',
  'bad-config',
  'too-large',
  'result-too-large',
  'busy',
  'no-such-image',
  // tickets and clusters (manual sections 4 to 6)
  'no-such-cluster',
  'no-such-vm',
  'no-such-ticket',
  'ticket-used',
  'ticket-unused',
  'ticket-disposed',
  'not-master',
  'not-owner',
  'not-clone',
  'no-agent',
  'tickets-outstanding',
  'no-resources',
  'interrupted',
  'no-such-checkpoint',
  'checkpoint-exists',
  'checkpoint-in-use',
  // the machine and the network
  'host-down',
  'vm-failed',
  'fork-failed',
  'source-lost',
  'timeout',
  'unavailable',
  'unauthorized',
  'internal',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

const HTTP_STATUS: Record<ErrorCode, number> = {
  'bad-request': 400,
  'bad-config': 400,
  'too-large': 413,
  'result-too-large': 413,
  busy: 429,
  'no-such-image': 404,
  'no-such-cluster': 404,
  'no-such-vm': 404,
  'no-such-ticket': 404,
  'ticket-used': 409,
  'ticket-unused': 409,
  'ticket-disposed': 410,
  'not-master': 403,
  'not-owner': 403,
  'not-clone': 403,
  'no-agent': 409,
  'tickets-outstanding': 409,
  'no-resources': 409,
  interrupted: 409,
  'no-such-checkpoint': 404,
  'checkpoint-exists': 409,
  'checkpoint-in-use': 409,
  'host-down': 503,
  'vm-failed': 500,
  'fork-failed': 500,
  'source-lost': 503,
  timeout: 504,
  unavailable: 503,
  unauthorized: 401,
  internal: 500,
};

/** An error with a code that survives every process boundary; the message says what happened, to which object, and what to do. */
export class SnowflockError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'SnowflockError';
    this.code = code;
  }

  get httpStatus(): number {
    return HTTP_STATUS[this.code];
  }
}

export function isErrorCode(value: unknown): value is ErrorCode {
  return typeof value === 'string' && (ERROR_CODES as readonly string[]).includes(value);
}

/** Any thrown value as a SnowflockError; what was not one becomes 'internal'. */
export function toSnowflockError(error: unknown): SnowflockError {
  if (error instanceof SnowflockError) return error;
  const message = error instanceof Error ? error.message : String(error);
  return new SnowflockError('internal', message, { cause: error });
}
