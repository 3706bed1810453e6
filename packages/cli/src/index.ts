export { connectExec, execInVm, startExec, type ExecHandle, type ExecOptions } from './exec-client.ts';
export { copyFromVm, copyToVm, parseCopySide, type CopySide } from './commands/cp.ts';
export { runProgram } from './failure.ts';
export { snowflockProgram } from './program.ts';
export { formatSeedReply, sfseedProgram } from './seed.ts';
export { openClient, resolveSocket } from './sfld-socket.ts';
export { formatState, sfstateProgram } from './state.ts';
export { formatBytes, formatTable, type Column } from './table.ts';
