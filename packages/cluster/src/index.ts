export * from './allocator.ts';
export * from './cluster-state.ts';
export * from './invariants.ts';
export * from './state.ts';
export * from './views.ts';
