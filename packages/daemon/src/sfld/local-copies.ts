// Making VMs of this host independent of the one that their pages come from: all pages are copied to files of this host in the background,
// and the memtap is fed from these.
//
//   attached ──all pages copied──▶ detached        the disk is full, or a page cannot be fetched: attached, and tried again
//
// Until then the VMs depend on that host: when it dies, or its memserver, they are lost ("memory can no longer be fetched").

import { randomUUID } from 'node:crypto';
import { mkdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { toSnowflockError } from '@snowflock/protocol';
import { logAbout } from '../log.ts';
import type { CloneGroup } from './clone-group.ts';
import type { HostContext } from './context.ts';
import type { ForkSource, ForkSourceOptions } from './fork-source.ts';

/** After a copy that did not work, for want of room on the disk. */
const COPY_AGAIN_MS = 60_000;
/** A VM's first seconds here are its own: it fetches what it needs at once. */
const COPY_AFTER_MS = 1_000;

export interface Place {
  /** vmid of a VM whose memory it is. */
  readonly owner: number;
  /** Of the files; made if it is not there. */
  readonly directory: string;
  /** It goes with the files. */
  readonly own: boolean;
}

export class LocalCopies implements Disposable {
  readonly #context: HostContext;
  /** Starts one, in place of what there was. Throws 'no-such-ticket' when the ticket is over. */
  readonly #startSource: (options: ForkSourceOptions) => Promise<ForkSource>;
  readonly #ending = new AbortController();

  constructor(context: HostContext, startSource: (options: ForkSourceOptions) => Promise<ForkSource>) {
    this.#context = context;
    this.#startSource = startSource;
  }

  /** Resolves to true when the group is fed from a copy; to false when nobody needs it any more. Never rejects. */
  async feedFromCopy(group: CloneGroup, place: Place, isNeeded: () => boolean): Promise<boolean> {
    const { signal } = this.#ending;
    const { clusterid, ticket } = group;
    const about = logAbout(this.#context.log, { clusterid, vmid: place.owner, ticket });
    for (let pauseMs = COPY_AFTER_MS; ; pauseMs = COPY_AGAIN_MS) {
      try {
        await sleep(pauseMs, undefined, { signal, ref: false });
        if (!isNeeded()) return false;
        await this.#copy(group, place);
        about.info({ from: group.parentHost }, 'all of its pages are here');
        return true;
      } catch (thrown) {
        if (signal.aborted || !isNeeded()) return false;
        const { message: reason } = toSnowflockError(thrown);
        about.warn(
          { reason, againMs: COPY_AGAIN_MS },
          'its pages could not be copied; it still depends on the host that they come from',
        );
      }
    }
  }

  async #copy(group: CloneGroup, { owner, directory, own }: Place): Promise<void> {
    const { ticket, clusterid, files: from } = group;
    const { host } = this.#context;
    const pagesDirectory = own ? directory : null;
    const of = { ticket, clusterid, owner, upstream: null, targets: [host], pagesDirectory };
    // What an earlier attempt has left goes with its source.
    const source = await this.#startSource(of);
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const [ramPath, diskPath] = [join(directory, 'ram.pages'), join(directory, 'disk.pages')];
    for (const path of [ramPath, diskPath]) await rm(path, { force: true });
    const { port } = await source.keepHere({
      ...{ id: randomUUID(), ramPath, from },
      ...(from.disk ? { diskPath } : {}),
    });
    await group.feedFrom({ port, key: source.key });
  }

  [Symbol.dispose](): void {
    this.#ending.abort();
  }
}
