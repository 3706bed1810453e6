import { defineConfig } from 'vitest/config';

// Two projects: `unit` is pure and parallel; `vm` uses root, namespaces, FUSE and QEMU, each file in a lab of its own: two at a
// time, because half of what they do is to wait for time-outs.
const places = ['packages/*/test', 'guest/image/test', 'lab/test', 'bench/test', 'tests'];

/** A poll ends when its matcher succeeds: how long it may take is for machines that are busy, not for the test to measure. */
const EXPECT = { poll: { timeout: 30_000 } };

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: places.map((place) => `${place}/**/*.test.ts`),
          exclude: ['**/node_modules/**', '**/*.vm.test.ts'],
          testTimeout: 60_000,
          expect: EXPECT,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          name: 'vm',
          include: places.map((place) => `${place}/**/*.vm.test.ts`),
          exclude: ['**/node_modules/**'],
          maxWorkers: 2,
          pool: 'forks',
          testTimeout: 400_000,
          expect: EXPECT,
          hookTimeout: 300_000,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
