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
  build(context: RecipeContext): Promise<RecipeResult>;
}

/**
 * Kernel command line of all images. mitigations=off: everything in a VM has one owner and the VM is the boundary, while retpolines cost
 * much under emulation. random.trust_cpu=on: no waiting for entropy at boot (the agent adds the host's as well). The rest spares
 * probing for hardware that no SnowFlock VM has.
 */
export const COMMON_APPEND = [
  'console=ttyS0',
  'quiet',
  'panic=-1',
  'mitigations=off',
  'random.trust_cpu=on',
  'cryptomgr.notests',
  'rcupdate.rcu_expedited=1',
  'i8042.noaux',
  'i8042.nokbd',
  '8250.nr_uarts=1',
  'tsc=nowatchdog',
].join(' ');
