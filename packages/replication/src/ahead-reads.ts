// How a READ of a memtap's file says that nobody waits for it yet: the file was opened with O_NONBLOCK.
//
// The kernel makes nothing of that on a regular file, but hands the flags of the open file to the FUSE server with every READ
// (fuse_read_in.flags in include/uapi/linux/fuse.h); and what is read so lands in the same page cache as all else.

import { constants } from 'node:fs';

/** In the flags of a READ: nobody waits for it. */
export const AHEAD_READ_FLAG = constants.O_NONBLOCK;
/** To open a memtap's file with, for such READs. */
export const AHEAD_OPEN_FLAGS = constants.O_RDONLY | AHEAD_READ_FLAG;
