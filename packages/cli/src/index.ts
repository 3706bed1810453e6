export { parseCopySide, type CopySide } from './commands/cp.ts';
export { runProgram } from './failure.ts';
export { snowflockProgram } from './program.ts';
export { formatSeedReply, sfseedProgram } from './seed.ts';
export { openClient, socketChoice } from './sfld-socket.ts';
export { startupProgram } from './startup.ts';
export { sfstateProgram } from './state.ts';
export { formatState } from './state-format.ts';
export { formatBytes, formatTable, type Column } from './table.ts';
