export { CLONES, HOSTS, type DemoResult } from './result.ts';
export { runDemo } from './run.ts';
