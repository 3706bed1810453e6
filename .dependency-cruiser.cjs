// The layering of ARCHITECTURE.md, held by machine.

// Who may import whose index.ts. What is not listed is forbidden; tests may import anything but one another's.
const middle = [
  'packages/vm',
  'packages/replication',
  'packages/network',
  'packages/cluster',
  'packages/authority',
];
const measuring = [
  'packages/cli',
  'packages/sdk',
  'lab',
  'guest/image',
  'packages/protocol',
  'packages/vm',
  'packages/replication',
];
const allowed = {
  'packages/protocol': [],
  ...Object.fromEntries(middle.map((folder) => [folder, ['packages/protocol']])),
  'guest/image': ['packages/protocol'],
  'packages/daemon': ['packages/protocol', ...middle, 'guest/image'],
  lab: ['packages/protocol', 'packages/network', 'packages/authority', 'guest/image'],
  'packages/sdk': ['packages/protocol'],
  'packages/cli': ['packages/protocol', 'packages/sdk', 'packages/authority', 'guest/image', 'lab'],
  demo: measuring,
  bench: [...measuring, 'packages/authority', 'packages/network'],
};
const folders = Object.keys(allowed).join('|');

module.exports = {
  forbidden: [
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    ...Object.entries(allowed).map(([folder, others]) => ({
      name: `layering-of-${folder}`,
      severity: 'error',
      from: { path: `^${folder}/src/` },
      to: { path: `^(${folders}|tests|examples)/`, pathNot: `^(${[folder, ...others].join('|')})/` },
    })),
    {
      name: 'package-surface-is-index',
      severity: 'error',
      from: { path: `^(${folders}|tests)/` },
      to: { path: `^(${folders})/src/(?!index\\.ts)`, pathNot: '^$1/|^packages/protocol/src/pages\\.ts' },
    },
    {
      name: 'nothing-imports-tests',
      severity: 'error',
      from: { pathNot: '(^tests/|/test/)' },
      to: { path: '(^tests/|/test/)' },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsConfig: { fileName: 'tsconfig.json' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node'],
      extensions: ['.ts', '.js'],
    },
  },
};
