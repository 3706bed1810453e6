// Whether pages come as slowly as a narrow link lets them, told from how they arrive; the memserver cannot tell: its kernel takes a
// whole read-ahead window at once, however long that is under way.
//
// Looked at is what arrives in the midst of a frame: it has left the other end, so the time since the read before is the link's.
// Or our own, if the thread did not get a CPU: then one read brings much, and says nothing. Bytes are counted, not times: however
// long somebody stood still, it is one read's bytes. Pure: no clock.

/** 320 Mbit/s. At 1 Gbit/s a memserver would be busy with nothing but compressing (docs/bench/distribution.md). */
const NARROW_BYTES_PER_MS = 40_000;
/** A read that brings more has lain here, or came at once. */
const LAIN_BYTES = 65_536;
/** Looked at before it is decided; half of it is forgotten then. */
const SAMPLE_BYTES = 262_144;

export class LinkPace {
  #slowBytes = 0;
  #fastBytes = 0;
  narrow = false;

  /** Takes note of a read in the midst of a frame. Returns whether `narrow` is another now. */
  onRead(bytes: number, sinceMs: number): boolean {
    if (bytes > NARROW_BYTES_PER_MS * sinceMs) this.#fastBytes += bytes;
    else if (bytes <= LAIN_BYTES) this.#slowBytes += bytes;
    if (this.#slowBytes + this.#fastBytes < SAMPLE_BYTES) return false;
    const before = this.narrow;
    this.narrow = this.#slowBytes > this.#fastBytes;
    this.#slowBytes /= 2;
    this.#fastBytes /= 2;
    return this.narrow !== before;
  }
}
