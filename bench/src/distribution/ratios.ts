import { figure, type Figure } from '../figures.ts';

/** The medians of one figure in two cases, or undefined where one of them was not measured. */
export function ratioOf(
  figures: readonly Figure[],
  name: string,
  ofCase: string,
  toCase: string,
): Figure | undefined {
  const median = (of: string): number | undefined =>
    figures.find((one) => one.name === name && one.case === of)?.median;
  const [of, to] = [median(ofCase), median(toCase)];
  if (of === undefined || to === undefined) return undefined;
  return figure({ name, case: `${ofCase} / ${toCase}`, unit: 'ratio', samples: [of / to] });
}
