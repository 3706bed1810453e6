export { chooseAccel, countingRom, measureAccel, type AccelProbe } from './accel.ts';
export { AgentLink } from './agent-link.ts';
export { within } from './deadline.ts';
export { createOverlay, diskInfo, type DiskInfo } from './disk.ts';
export type { FrozenProcess, RamRange } from './fork-control.ts';
export { DiskChain, freezeVm, type FreezeTimings, type FrozenVm } from './freeze.ts';
export { expectDeviceState, loadDeviceState } from './incoming.ts';
export {
  buildQemuArgs,
  diskNode,
  vmPaths,
  type Accel,
  type VmPaths,
  type VmOrigin,
  type VmRam,
  type VmSpec,
} from './qemu-args.ts';
export { QemuProcess, type VmEnd } from './qemu-process.ts';
export { Qmp } from './qmp.ts';
export { connectUnix } from './unix-socket.ts';
