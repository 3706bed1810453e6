export * from './cluster-network.ts';
export * from './commands.ts';
export * from './names.ts';
export * from './run-command.ts';
export * from './run.ts';
