// The layering of ARCHITECTURE.md, held by machine:
// protocol <- {vm, replication, network, cluster} <- daemon; the four in the middle never meet.
const middle = ['vm', 'replication', 'network', 'cluster'];
module.exports = {
  forbidden: [
    { name: 'no-circular', severity: 'error', from: {}, to: { circular: true } },
    {
      name: 'protocol-is-the-bottom',
      severity: 'error',
      from: { path: '^packages/protocol/src' },
      to: { path: '^(packages/(?!protocol)|guest|lab|bench)' },
    },
    ...middle.map((name) => ({
      name: `${name}-imports-only-protocol`,
      severity: 'error',
      from: { path: `^packages/${name}/src` },
      to: { path: `^(packages/(?!${name}/|protocol/)|guest|lab|bench)` },
    })),
    {
      name: 'nobody-imports-the-daemon',
      severity: 'error',
      from: { pathNot: '^(packages/daemon|tests)' },
      to: { path: '^packages/daemon' },
    },
    {
      name: 'package-surface-is-index',
      severity: 'error',
      from: { path: '^(packages/[^/]+|lab|bench|guest/image)/' },
      to: { path: '^(packages/[^/]+|lab|bench|guest/image)/src/(?!index\\.ts)', pathNot: '^$1/' },
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
