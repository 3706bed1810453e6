// Tables for people: columns as wide as what is in them, cut to the terminal when there is one.

const GAP = '  ';
const COLUMN_MIN = 8;

export interface Column {
  readonly title: string;
  readonly align?: 'right';
}

/** Lines without trailing blanks. With `width`, the widest columns give way until a line fits. */
export function formatTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  options: { readonly width?: number | undefined } = {},
): string[] {
  const widths = columns.map(({ title }, index) =>
    Math.max(title.length, ...rows.map((row) => (row[index] ?? '').length)),
  );
  shrink(widths, options.width);
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, index) => {
        const width = widths[index] ?? 0;
        const text = cell.length > width ? `${cell.slice(0, Math.max(0, width - 1))}…` : cell;
        return columns[index]?.align === 'right' ? text.padStart(width) : text.padEnd(width);
      })
      .join(GAP)
      .trimEnd();
  return [line(columns.map(({ title }) => title)), ...rows.map(line)];
}

function shrink(widths: number[], limit: number | undefined): void {
  if (limit === undefined) return;
  const total = (): number =>
    widths.reduce((sum, width) => sum + width, 0) + GAP.length * (widths.length - 1);
  while (total() > limit) {
    const widest = Math.max(...widths);
    if (widest <= COLUMN_MIN) return;
    widths[widths.indexOf(widest)] = Math.max(COLUMN_MIN, widest - (total() - limit));
  }
}

/** 256M, 1.5G. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'K', 'M', 'G', 'T'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)}${units[unit] ?? ''}`;
}
