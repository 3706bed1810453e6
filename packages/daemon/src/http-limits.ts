// What one caller, or all of them, can make a daemon hold: every limit of its HTTP listeners, in one place. Those that
// depend on the size of the system are options of both daemons: HttpLimits in packages/protocol/src/config-file.ts.

import { DESCRIPTOR_MAX_BYTES } from '@snowflock/protocol';

/** No control message in JSON comes near: a ticket of 1024 clones is about 100 KB. Above: 413. */
export const JSON_BODY_MAX_BYTES = 1 << 20;
/** Of the one binary message. Above: 413. */
export const BINARY_BODY_MAX_BYTES = DESCRIPTOR_MAX_BYTES;
/** All headers of a request; ours have some 200 bytes. Above: 431. */
export const HEADERS_MAX_BYTES = 8192;
/** From the connection to the end of the TLS handshake, and of a request to the end of its headers. Later: 408. */
export const HEADERS_TIMEOUT_MS = 10_000;
/** From the first byte of a request to the last of its body: a descriptor over a slow network. Later: 408. */
export const REQUEST_TIMEOUT_MS = 120_000;
/** How often those two are looked at. */
export const TIMEOUT_CHECK_MS = 1000;
/** Idle connections; longer than what clients are told. */
export const KEEP_ALIVE_MS = 65_000;

/** Over the limit, but told so. */
export const CONNECTIONS_SPARE = 256;
