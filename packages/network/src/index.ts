export * from './cluster-network.ts';
export * from './commands.ts';
export * from './names.ts';
export * from './run-command.ts';
export * from './run.ts';
export {
  applyHostRouting,
  hostRoutingRules,
  removeHostRouting,
  type HostRouting,
} from './router/host-rules.ts';
export { RouterProcess } from './router/router-process.ts';
export * from './router/rules.ts';
export * from './tap-guard.ts';
export * from './vxlan-filter.ts';
