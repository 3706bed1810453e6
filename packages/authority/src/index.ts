export * from './authority.ts';
export * from './enroll-client.ts';
export * from './identity-files.ts';
export * from './openssl.ts';
export * from './renewal.ts';
export * from './token.ts';
