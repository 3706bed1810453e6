// The plots and tables of docs/bench/distribution.md:
//   tools/run bench/src/distribution/report.ts RESULT.json ...
// Each file is what `npm run bench -- distribution --json` printed, whole or of some parts; a figure of a later file takes the place of
// the same one in an earlier. Writes docs/bench/distribution-*.svg, prints the tables.

import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { barChart, lineChart, type Line } from '../svg.ts';
import { caseName, HOSTS, LINKS, VARIANTS } from './cases.ts';

const PLACE = join(import.meta.dirname, '../../../docs/bench');
const MB = 1e6;
const CLONES = [1, 2, 4, 8, 16, 32];
/** What is measured in full has lines; what it is without one thing or another, bars beside the first of them. */
const WAYS = VARIANTS.filter(({ measured }) => measured === undefined);
const BARS_CLONES = 8;

const Result = z.object({
  figures: z.array(z.object({ name: z.string(), case: z.string(), unit: z.string(), median: z.number() })),
});

class Figures {
  readonly #medians = new Map<string, number>();

  async read(path: string): Promise<void> {
    const line = (await readFile(path, 'utf8')).trim().split('\n').at(-1) ?? '';
    for (const one of Result.parse(JSON.parse(line)).figures)
      this.#medians.set(key(one.name, one.case), one.median);
  }

  of(name: string, ofCase: string): number | undefined {
    return this.#medians.get(key(name, ofCase));
  }

  casesOf(name: string): string[] {
    const start = key(name, '');
    return [...this.#medians.keys()]
      .filter((one) => one.startsWith(start))
      .map((one) => one.slice(start.length));
  }
}

/** Figures of account.ts that the table shows: name, title, unit. */
const ACCOUNT = [
  ['pages of a clone: on demand', 'pages on demand', 1],
  ['pages of a clone: fetched ahead', 'fetched ahead', 1],
  ['pages of a clone: pushed', 'of them pushed', 1],
  ['pages of a clone: pushed and used, estimated', 'pushed and used', 1],
  ['pages of a clone: held back', 'held back', 1],
  ['pages of a clone: held back and missed', 'and missed', 1],
  ['pages of a clone: compressed', 'compressed', 1],
  ['pages of a clone: multicast, not asked for', 'by multicast unasked', 1],
  ['pages of a clone: avoided', 'avoided', 1],
  ['bytes of a clone: by unicast', 'MB by unicast', MB],
  ['bytes of a clone: by multicast', 'MB by multicast', MB],
  ['waits of a clone: number', 'waits', 1],
  ['waits of a clone: median', 'median, ms', 1000],
  ['waits of a clone: 99 %', '99 %, ms', 1000],
  ['waits of a clone: in all', 'in all, s', 1e6],
] as const;

function key(name: string, ofCase: string): string {
  return `${name}\n${ofCase}`;
}

function linesOf(figures: Figures, name: string, scale: number): Line[] {
  const dashes = [undefined, '8 4', '2 3'];
  return WAYS.flatMap((variant, colour) =>
    LINKS.map((link, index) => ({
      ...{ name: `${variant.name}, ${link.name}`, colour, dashes: dashes[index] },
      points: CLONES.flatMap((clones) => {
        const value = figures.of(name, caseName(variant, link, clones));
        return value === undefined ? [] : [[clones, value / scale] as const];
      }),
    })).filter(({ points }) => points.length > 0),
  );
}

async function plotCases(figures: Figures): Promise<void> {
  const x = `clones, over ${HOSTS} hosts`;
  const charts = [
    [
      'bytes-leaving-parent / touched-union',
      1,
      'bytes',
      'What leaves the parent, against the union of the pages touched',
      '×',
    ],
    [
      'bytes-to-host / touched-host',
      1,
      'host',
      'What a host gets, against the pages that its clones touch',
      '×',
    ],
    ['job', 1000, 'job', 'From the call to the last clone that has read 16 MiB', 's'],
    ['stall-of-clone', 1000, 'stall', 'Time that the pages of a clone were waited for', 's'],
  ] as const;
  for (const [name, scale, file, title, unit] of charts) {
    const lines = linesOf(figures, name, scale);
    if (lines.length === 0) continue;
    const format = (value: number): string => `${Number(value.toPrecision(2))} ${unit}`;
    const chart = lineChart({ title, x, format }, lines);
    await writeFile(join(PLACE, `distribution-${file}.svg`), chart);
  }
}

/** What is saved by what can be turned off: the first way with all of it, and without. */
async function plotWithout(figures: Figures): Promise<void> {
  const [first] = WAYS;
  for (const [name, file, title, label] of [
    [
      'bytes-leaving-parent',
      'without-bytes',
      `What leaves the parent for ${BARS_CLONES} clones (logarithmic)`,
      (value: number) => `${short(value / MB)} MB`,
    ],
    [
      'job',
      'without-job',
      `From the call to the last of ${BARS_CLONES} clones (logarithmic)`,
      (value: number) => `${short(value / 1000)} s`,
    ],
  ] as const) {
    const bars = LINKS.flatMap((link) => {
      const without = VARIANTS.filter(({ measured }) => measured !== undefined).map((variant) => ({
        ...{ variant, colour: 1, value: figures.of(name, caseName(variant, link, BARS_CLONES)) },
      }));
      const measured = without.filter(({ value }) => value !== undefined);
      if (!first || measured.length === 0) return [];
      const value = figures.of(name, caseName(first, link, BARS_CLONES));
      return [{ variant: first, colour: 0, value }, ...measured].map((one) => ({
        name: `${one.variant.name.replace('unicast ', '')}, ${link.name}`,
        value: one.value ?? Number.NaN,
        label: label(one.value ?? Number.NaN),
        colour: one.colour,
      }));
    }).filter(({ value }) => !Number.isNaN(value));
    if (bars.length > 0) await writeFile(join(PLACE, `distribution-${file}.svg`), barChart(title, bars));
  }
}

async function plotPeers(figures: Figures): Promise<void> {
  for (const [name, file, title, label] of [
    [
      'state-sent',
      'peers-bytes',
      'State sent for one copy of a VM (logarithmic)',
      (value: number) => `${short(value / MB)} MB`,
    ],
    [
      'answer',
      'peers-answer',
      'Time until the copy answers (logarithmic)',
      (value: number) => `${short(value)} ms`,
    ],
  ] as const) {
    const bars = figures
      .casesOf(name)
      .filter((one) => !one.includes(' / '))
      .map((one) => {
        const value = figures.of(name, one) ?? Number.NaN;
        return { name: one, value, label: label(value), colour: one.startsWith('snowflock') ? 0 : 1 };
      });
    if (bars.length > 0) await writeFile(join(PLACE, `distribution-${file}.svg`), barChart(title, bars));
  }
}

function short(value: number): string {
  if (value === 0) return '0';
  return value >= 100 ? Math.round(value).toLocaleString('en') : value.toPrecision(2);
}

function caseTable(figures: Figures): string[] {
  const columns = [
    ['bytes-leaving-parent', MB],
    ['bytes-leaving-parent / touched-union', 1],
    ['bytes-on-cable', MB],
    ['bytes-to-host', MB],
    ['bytes-to-host / touched-host', 1],
    ['job', 1000],
    ['stall-of-clone', 1000],
  ] as const;
  const rows = [
    '| pages by, link | clones | leaving, MB | / union | on the cable, MB | to a host, MB | / touched | job, s | stall, s |',
    '| --- | --: | --: | --: | --: | --: | --: | --: | --: |',
  ];
  for (const variant of VARIANTS)
    for (const link of LINKS)
      for (const clones of CLONES) {
        const values = columns.map(
          ([name, scale]) => [figures.of(name, caseName(variant, link, clones)), scale] as const,
        );
        if (values[0]?.[0] === undefined) continue;
        const cells = values.map(([value, scale]) => (value === undefined ? '' : (value / scale).toFixed(2)));
        rows.push(`| ${variant.name}, ${link.name} | ${clones} | ${cells.join(' | ')} |`);
      }
  return rows;
}

function ratioTable(figures: Figures): string[] {
  const rows = ['| ratio | 32 clones / 8 clones: leaving | job | stall |', '| --- | --: | --: | --: |'];
  const of = (name: string, variant: { name: string }, link: { name: string }): string => {
    const more = figures.of(name, caseName(variant, link, 32));
    const one = figures.of(name, caseName(variant, link, HOSTS));
    return more === undefined || one === undefined ? '' : (more / one).toFixed(2);
  };
  for (const variant of VARIANTS)
    for (const link of LINKS) {
      const cells = ['bytes-leaving-parent', 'job', 'stall-of-clone'].map((name) => of(name, variant, link));
      if (cells.some((cell) => cell !== ''))
        rows.push(`| ${variant.name}, ${link.name} | ${cells.join(' | ')} |`);
    }
  return rows;
}

/** Means for each clone, by what the product counts; a figure that no case has takes no column. */
function accountTable(figures: Figures): string[] {
  const columns = ACCOUNT.filter(([name]) => figures.casesOf(name).length > 0);
  const cases = [...new Set(columns.flatMap(([name]) => figures.casesOf(name)))];
  const cell = (value: number | undefined, scale: number): string =>
    value === undefined ? '' : short(value / scale);
  return [
    `| for each clone | ${columns.map(([, title]) => title).join(' | ')} |`,
    `| --- |${columns.map(() => ' --: |').join('')}`,
    ...cases.map(
      (one) =>
        `| ${one} | ${columns.map(([name, , scale]) => cell(figures.of(name, one), scale)).join(' | ')} |`,
    ),
  ];
}

/** Figures that are bytes or times of BLAST, one row each. */
function blastTable(figures: Figures): string[] {
  const rows = ['| figure | case | |', '| --- | --- | --: |'];
  for (const [name, unit, scale] of [
    ['blast-snapshot', 'MB', MB],
    ['blast-bytes-leaving-parent', 'MB', MB],
    ['blast-bytes-on-cable', 'MB', MB],
    ['blast-state-sent', 'MB', MB],
    ['blast-search', 's', 1000],
    ['blast-cpu', 's', 1000],
    ['blast-excess', 's', 1000],
  ] as const)
    for (const one of figures.casesOf(name)) {
      const value = figures.of(name, one) ?? Number.NaN;
      rows.push(
        `| ${name} | ${one} | ${one.includes(' / ') ? `${value.toPrecision(3)} ×` : `${short(value / scale)} ${unit}`} |`,
      );
    }
  return rows;
}

function peerTable(figures: Figures): string[] {
  const cases = figures.casesOf('state-sent').filter((one) => !one.includes(' / '));
  const ours = cases.filter((one) => one.startsWith('snowflock'));
  const rows = [
    `| | sent, MB | answer, ms |${ours.map((one) => ` sent / ${one} | answer / ${one} |`).join('')}`,
    `| --- | --: | --: |${ours.map(() => ' --: | --: |').join('')}`,
  ];
  for (const one of cases) {
    const [sent = Number.NaN, answer = Number.NaN] = ['state-sent', 'answer'].map((name) =>
      figures.of(name, one),
    );
    const against = ours.flatMap((our) => [
      (sent / (figures.of('state-sent', our) ?? Number.NaN)).toFixed(2),
      (answer / (figures.of('answer', our) ?? Number.NaN)).toFixed(2),
    ]);
    rows.push(`| ${one} | ${(sent / MB).toFixed(1)} | ${answer.toFixed(0)} | ${against.join(' | ')} |`);
  }
  return rows;
}

const figures = new Figures();
for (const path of process.argv.slice(2)) await figures.read(path);
await plotCases(figures);
await plotWithout(figures);
await plotPeers(figures);
for (const name of ['touched-union', 'touched-host'])
  for (const one of figures.casesOf(name))
    console.log(`${name}, ${one}: ${((figures.of(name, one) ?? Number.NaN) / MB).toFixed(2)} MB`);
for (const table of [caseTable, ratioTable, accountTable, peerTable, blastTable])
  console.log(`\n${table(figures).join('\n')}`);
