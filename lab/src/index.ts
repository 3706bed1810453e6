export { runCommand, type CommandOptions, type CommandResult } from '@snowflock/network';
export { downLab, type DownOptions, type DownResult } from './down.ts';
export {
  Lab,
  LAB_DEFAULT_CPUS,
  LAB_DEFAULT_RAM_BYTES,
  LAB_STEPS,
  type LabHost,
  type LabProgress,
  type LabStep,
  type LabUpOptions,
} from './lab.ts';
export { findLeftovers, type Leftover } from './leftovers.ts';
export { labLogs, type LabLog } from './logs.ts';
export { DEFAULT_LAB_NAME, hostSocket, LAB_HOSTS_MAX, labDir } from './names.ts';
export { labProgressView, type LabProgressView } from './progress.ts';
export type { DaemonName } from './record.ts';
export { formatSize, parseSize } from './size.ts';
export { labStatus, type LabHostStatus, type LabStatus } from './status.ts';
export type { LinkShape } from './topology.ts';
export type { LabNetworkMode } from './config.ts';
