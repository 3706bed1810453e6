export type { CallOptions } from './call-options.ts';
export { Checkpoints, type CheckpointOptions } from './checkpoints.ts';
export { copyFromVm, copyToVm } from './copy.ts';
export { EventStream, type EventOptions } from './events.ts';
export { execInVm, type ExecResult } from './exec-captured.ts';
export { connectExec, EXEC_WAIT_MS, startExec, type ExecHandle, type ExecOptions } from './exec.ts';
export { MasterVm, type TicketOptions } from './master-vm.ts';
export { DEFAULT_SOCKET, findSocket, type SocketChoice } from './socket.ts';
export { System, type ConnectOptions } from './system.ts';
export { Vm, type ForkOptions, type WaitOptions } from './vm.ts';
export {
  isErrorCode,
  SnowflockError,
  type CheckpointInfo,
  type ErrorCode,
  type ForkVmReply,
  type MigrateReply,
  type PortExposed,
  type RouterInfo,
  type SeedRequest,
  type SystemEvent,
  type SystemState,
  type TicketGrant,
  type TicketList,
  type VmRef,
  type VmShape,
  type VmState,
} from '@snowflock/protocol';
