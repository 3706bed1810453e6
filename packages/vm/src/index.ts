export { chooseAccel, countingRom, measureAccel, type AccelProbe } from './accel.ts';
export { AgentLink, identityFrame } from './agent-link.ts';
export { within } from './deadline.ts';
export { createOverlay, diskInfo, type DiskInfo } from './disk.ts';
export type { FrozenProcess, RamRange } from './fork-control.ts';
export { DiskChain, overlayPath, type BlankOverlay } from './disk-chain.ts';
export { freezeAndStay, freezeVm, type FreezeTimings, type FrozenVm } from './freeze.ts';
export { announcePlace, expectDeviceState, goOn, loadDeviceState, openDeviceState } from './incoming.ts';
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
export { type VmEnd } from './last-words.ts';
export { QemuProcess } from './qemu-process.ts';
export { isRunning, killProcess, markProcess, type ProcessMark } from './process-mark.ts';
export { Qmp } from './qmp.ts';
export { yieldSurplusCpus } from './surplus-cpus.ts';
export { rewindVm } from './rewind.ts';
export { connectUnix } from './unix-socket.ts';
