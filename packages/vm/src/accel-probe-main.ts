// Prints what chooseAccel('auto') finds, as one JSON line; `snowflock doctor` shows it.

import { chooseAccel } from './accel.ts';

console.log(JSON.stringify(await chooseAccel('auto')));
