export interface MadeFile {
  /** Relative to the checkout. */
  readonly path: string;
  readonly text: string;
}
