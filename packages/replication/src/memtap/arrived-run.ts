// Neighbouring pages that came by multicast one after another, delivered together: a STORE for each page by itself goes the way of a
// sequential reader, which then has to send a READ for every page, too.
//
// Invariants:
//   A page in here is `wanted`, and stays so until it is delivered: whoever reads it meanwhile waits for that.
//   A page that a READ waits for is delivered at once, the others when the process has taken in what lay in its socket.

import {
  createPageFrame,
  PAGE_BYTES,
  PAGE_WIRE_MAX_PAGES,
  pageDataOffset,
  type PageFrame,
  PageFrameType,
} from '@snowflock/protocol/pages';

/** Where the first page's data lies, whatever the number of pages. */
const DATA_AT = pageDataOffset(PAGE_WIRE_MAX_PAGES);

export type DeliverRun = (frame: PageFrame, bytes: Buffer, offset: number) => void;

export class ArrivedRun {
  readonly #deliver: DeliverRun;
  readonly #frame: PageFrame = { ...createPageFrame(), type: PageFrameType.data };
  /** A DATA frame in the making. All bits of the bitmap are set for good: each page has data. */
  readonly #bytes = Buffer.alloc(DATA_AT + PAGE_WIRE_MAX_PAGES * PAGE_BYTES, 0xff);
  #count = 0;
  #timer: NodeJS.Immediate | undefined;

  constructor(options: { readonly deliver: DeliverRun }) {
    this.#deliver = options.deliver;
  }

  /** Copies a page in. What is in here already and is no neighbour is delivered before. */
  add(region: number, page: number, data: Buffer): void {
    const frame = this.#frame;
    const follows = frame.region === region && frame.firstPage + this.#count === page;
    if (this.#count > 0 && (!follows || this.#count === PAGE_WIRE_MAX_PAGES)) this.flush();
    if (this.#count === 0) {
      frame.region = region;
      frame.firstPage = page;
    }
    data.copy(this.#bytes, DATA_AT + this.#count * PAGE_BYTES);
    this.#count++;
    this.#timer ??= setImmediate(() => this.flush());
  }

  /** Delivers what is in here. */
  flush(): void {
    clearImmediate(this.#timer);
    this.#timer = undefined;
    if (this.#count === 0) return;
    const frame = this.#frame;
    frame.pageCount = frame.dataPages = this.#count;
    this.#count = 0;
    this.#deliver(frame, this.#bytes, DATA_AT - pageDataOffset(frame.pageCount));
  }
}
