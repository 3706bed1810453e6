// Shows how a lab comes up: listr2's live list on a terminal, one plain line per step elsewhere.

import { Listr } from 'listr2';
import { LAB_STEPS, type LabProgress, type LabStep } from './lab.ts';

const TITLES: Readonly<Record<LabStep, string>> = {
  network: 'network',
  certificates: 'certificates',
  sfmd: 'master daemon',
  sfld: 'local daemons',
  hosts: 'hosts up',
};

/** Columns; a narrower terminal gets plain lines. */
const LIVE_WIDTH_MIN = 40;

export interface LabProgressView {
  readonly onProgress: (progress: LabProgress) => void;
  /** Resolves when the last line is drawn. Call it whether the lab came up or not. */
  readonly finish: () => Promise<void>;
}

/** Writes to standard error: standard output is for results. */
export function labProgressView(stream: NodeJS.WriteStream = process.stderr): LabProgressView {
  // listr2 draws on standard output, and needs to know how wide it is.
  const live = stream.isTTY && process.stdout.isTTY && process.stdout.columns >= LIVE_WIDTH_MIN;
  if (!live) return plainView(stream);
  let view: LabProgressView | undefined;
  return {
    onProgress: (progress) => (view ??= liveView()).onProgress(progress),
    finish: async () => view?.finish(),
  };
}

function plainView(stream: NodeJS.WriteStream): LabProgressView {
  const startedAt = new Map<LabStep, number>();
  return {
    onProgress: ({ step, state, detail }) => {
      if (state === 'start') return void startedAt.set(step, performance.now());
      const seconds = ((performance.now() - (startedAt.get(step) ?? performance.now())) / 1000).toFixed(1);
      stream.write(`lab: ${TITLES[step]}: ${detail} ${state === 'done' ? `(${seconds} s)` : 'FAILED'}\n`);
    },
    finish: async () => undefined,
  };
}

/** Each step is a task that ends when its event comes; what has not ended when the view does, did not happen. */
function liveView(): LabProgressView {
  const steps = new Map(LAB_STEPS.map((step) => [step, Promise.withResolvers<void>()]));
  const titles = new Map<LabStep, string>();
  const list = new Listr(
    LAB_STEPS.map((step) => ({
      title: TITLES[step],
      task: async (_, task): Promise<void> => {
        task.title = titles.get(step) ?? TITLES[step];
        await steps.get(step)?.promise;
      },
    })),
    { exitOnError: true },
  );
  for (const { promise } of steps.values()) promise.catch(() => undefined); // shown by the list
  const shown = list.run().catch(() => undefined); // the caller reports the error itself
  return {
    onProgress: ({ step, state, detail }) => {
      titles.set(step, `${TITLES[step]}: ${detail}`);
      if (state === 'done') steps.get(step)?.resolve();
      if (state === 'failed') steps.get(step)?.reject(new Error(`${TITLES[step]} failed`));
    },
    finish: async () => {
      for (const { reject } of steps.values()) reject(new Error('not reached'));
      await shown;
    },
  };
}
