// What a recipe is.

export interface RecipeContext {
  /** Empty directory for what is needed only while building. */
  readonly work: string;
  /** Directory whose contents become the image. */
  readonly output: string;
  readonly signal: AbortSignal | undefined;
  readonly progress: (text: string) => void;
}

export interface RecipeResult {
  /** Paths relative to the image's directory. */
  readonly kernel: string;
  readonly initrd: string;
  readonly append: string;
  readonly disk: { readonly path: string; readonly sizeBytes: number };
  /** Versions learnt while building, in addition to those of `Recipe.packages`. */
  readonly packages: Readonly<Record<string, string>>;
}

export interface Recipe {
  /** Debian packages whose versions are part of the image's hash. */
  readonly packages: readonly string[];
  /** Folders of guest/ that are in this image, besides those that are in all of them. */
  readonly sources: readonly string[];
  build(context: RecipeContext): Promise<RecipeResult>;
}

/**
 * Kernel command line of all images. random.trust_cpu=on: no waiting for entropy at boot (the agent adds the host's as well).
 * nowatchdog: what it would find are clones that stall on a page. psi=0: bookkeeping at every switch that nothing here reads.
 * tsc=reliable: with several CPUs under emulation, or when a clone stalls on a page, the kernel would else distrust the TSC and read a
 * far slower clock. The rest spares self-tests and probing for
 * hardware that no SnowFlock VM has. mitigations=off is not here: it made no measurable difference to a boot under emulation.
 */
export const COMMON_APPEND = [
  'console=ttyS0',
  'quiet',
  'panic=-1',
  'random.trust_cpu=on',
  'cryptomgr.notests',
  'rcupdate.rcu_expedited=1',
  'i8042.noaux',
  'i8042.nokbd',
  '8250.nr_uarts=1',
  'tsc=reliable',
  'nowatchdog',
  'psi=0',
].join(' ');
