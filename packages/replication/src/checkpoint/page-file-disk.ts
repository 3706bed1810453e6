// The disk of a checkpoint, read as a frozen disk is: any run of pages, holes as zeros.

import { PAGE_BYTES } from '@snowflock/protocol/pages';
import type { PageRun, SnapshotDisk } from '../memserver/snapshot.ts';
import type { PageFile } from './page-file.ts';

export class PageFileDisk implements SnapshotDisk {
  readonly pageCount: number;
  readonly #file: PageFile;

  /** Owns the file. */
  constructor(file: PageFile) {
    this.#file = file;
    this.pageCount = file.pageCount;
  }

  async read(target: Buffer, { offset, firstPage, pageCount }: PageRun): Promise<void> {
    const { presence } = this.#file;
    const end = firstPage + pageCount;
    target.fill(0, offset, offset + pageCount * PAGE_BYTES);
    for (let page = presence.next(firstPage, true, end); page < end;) {
      const stop = presence.next(page, false, end);
      const at = offset + (page - firstPage) * PAGE_BYTES;
      this.#file.read(target, { offset: at, firstPage: page, pageCount: stop - page });
      page = presence.next(stop, true, end);
    }
  }

  async close(): Promise<void> {
    this.#file.close();
  }
}
