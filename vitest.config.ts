import { defineConfig } from 'vitest/config';

// Two projects: `unit` is pure and parallel; `vm` uses root, namespaces, FUSE and QEMU, so one file at a time.
const places = ['packages/*/test', 'guest/image/test', 'lab/test', 'bench/test', 'tests'];

export default defineConfig({
  test: {
    projects: [
      {
        test: {
          name: 'unit',
          include: places.map((place) => `${place}/**/*.test.ts`),
          exclude: ['**/node_modules/**', '**/*.vm.test.ts'],
          testTimeout: 20_000,
          sequence: { groupOrder: 1 },
        },
      },
      {
        test: {
          name: 'vm',
          include: places.map((place) => `${place}/**/*.vm.test.ts`),
          exclude: ['**/node_modules/**'],
          fileParallelism: false,
          maxWorkers: 1,
          pool: 'forks',
          testTimeout: 120_000,
          hookTimeout: 240_000,
          sequence: { groupOrder: 2 },
        },
      },
    ],
  },
});
