export interface CallOptions {
  /** Gives up when it aborts: the call fails with `interrupted`. */
  readonly signal?: AbortSignal | undefined;
}
