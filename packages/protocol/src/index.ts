export * from './addresses.ts';
export * from './config-file.ts';
export * from './control-client.ts';
export * from './control.ts';
export * from './descriptor.ts';
export * from './errors.ts';
export * from './guest-channel.ts';
export * from './page-wire.ts';
