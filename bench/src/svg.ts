// Plain charts as SVG text: lines over a row of counts, and horizontal bars; both with a logarithmic axis of values. Pure. Colours are of
// the palette of Okabe and Ito (2008), which most people tell apart.

const COLOURS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9'];
const WIDTH = 680;
const FONT = 'font-family="sans-serif" font-size="12"';
const GRID = '#dddddd';
const INK = '#333333';
const MARGIN = { top: 40, right: 190, bottom: 46, left: 64 };
const PLOT_HEIGHT = 250;
const BAR_HEIGHT = 20;
const BAR_LABEL_WIDTH = 220;

export interface Line {
  readonly name: string;
  /** Lines of one colour differ by their dashes. */
  readonly colour: number;
  readonly dashes?: string | undefined;
  readonly points: readonly (readonly [x: number, y: number])[];
}

interface Axes {
  readonly title: string;
  readonly x: string;
  readonly format: (value: number) => string;
}

export function lineChart({ title, x, format }: Axes, lines: readonly Line[]): string {
  const counts = [...new Set(lines.flatMap(({ points }) => points.map(([at]) => at)))].sort((a, b) => a - b);
  const scale = logScale(
    lines.flatMap(({ points }) => points.map(([, value]) => value)),
    { from: MARGIN.top + PLOT_HEIGHT, to: MARGIN.top },
  );
  const right = WIDTH - MARGIN.right;
  const atX = (count: number): number =>
    MARGIN.left + ((right - MARGIN.left) * counts.indexOf(count)) / Math.max(1, counts.length - 1);
  const parts: string[] = [text(MARGIN.left, 20, title, 'font-weight="bold"')];
  for (const tick of scale.ticks) {
    const level = scale.at(tick);
    parts.push(rule(MARGIN.left, level, right, level));
    parts.push(text(MARGIN.left - 6, level + 4, format(tick), 'text-anchor="end"'));
  }
  const bottom = MARGIN.top + PLOT_HEIGHT;
  for (const count of counts)
    parts.push(text(atX(count), bottom + 18, String(count), 'text-anchor="middle"'));
  parts.push(text((MARGIN.left + right) / 2, bottom + 36, x, 'text-anchor="middle"'));
  for (const [index, line] of lines.entries()) {
    const colour = colourOf(line.colour);
    const style = `fill="none" stroke="${colour}" stroke-width="2"${line.dashes ? ` stroke-dasharray="${line.dashes}"` : ''}`;
    const points = line.points.map(([count, value]) => `${round(atX(count))},${round(scale.at(value))}`);
    parts.push(`<polyline points="${points.join(' ')}" ${style}/>`);
    for (const point of points) {
      const [cx = '0', cy = '0'] = point.split(',');
      parts.push(`<circle cx="${cx}" cy="${cy}" r="3" fill="${colour}"/>`);
    }
    const level = MARGIN.top + 12 + index * 20;
    parts.push(`<polyline points="${right + 14},${level} ${right + 38},${level}" ${style}/>`);
    parts.push(text(right + 44, level + 4, line.name, ''));
  }
  return document(bottom + MARGIN.bottom, parts);
}

export interface Bar {
  readonly name: string;
  readonly value: number;
  /** Written behind the bar. */
  readonly label: string;
  readonly colour: number;
}

export function barChart(title: string, bars: readonly Bar[]): string {
  const right = WIDTH - 130;
  const scale = logScale(
    bars.map(({ value }) => value),
    { from: BAR_LABEL_WIDTH, to: right },
  );
  const bottom = MARGIN.top + bars.length * (BAR_HEIGHT + 8);
  const parts: string[] = [text(12, 20, title, 'font-weight="bold"')];
  for (const tick of scale.ticks) parts.push(rule(scale.at(tick), MARGIN.top - 6, scale.at(tick), bottom));
  for (const [index, { name, value, label, colour }] of bars.entries()) {
    const top = MARGIN.top + index * (BAR_HEIGHT + 8);
    const end = scale.at(value);
    parts.push(
      `<rect x="${BAR_LABEL_WIDTH}" y="${top}" width="${round(end - BAR_LABEL_WIDTH)}" height="${BAR_HEIGHT}" fill="${colourOf(colour)}"/>`,
    );
    parts.push(text(BAR_LABEL_WIDTH - 8, top + 14, name, 'text-anchor="end"'));
    parts.push(text(end + 6, top + 14, label, ''));
  }
  return document(bottom + 12, parts);
}

interface Scale {
  readonly at: (value: number) => number;
  readonly ticks: readonly number[];
}

/** From the 1, 2 or 5 times a power of ten below the least value to the one above the greatest. */
function logScale(values: readonly number[], { from, to }: { from: number; to: number }): Scale {
  const ladder = Array.from({ length: 60 }, (_, step) => [1, 2, 5].map((m) => m * 10 ** (step - 20))).flat();
  const least = Math.min(...values);
  const greatest = Math.max(...values);
  const first = ladder.findLast((one) => one < least) ?? least;
  const last = ladder.find((one) => one > greatest) ?? greatest;
  const inside = ladder.filter((one) => one >= first && one <= last);
  // more than nine would stand too close: powers of ten only
  const ticks = inside.length > 9 ? inside.filter((one) => Number.isInteger(Math.log10(one))) : inside;
  const at = (value: number): number =>
    from + ((to - from) * Math.log(value / first)) / Math.log(last / first);
  return { at, ticks };
}

function colourOf(index: number): string {
  return COLOURS[index % COLOURS.length] ?? INK;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function rule(x1: number, y1: number, x2: number, y2: number): string {
  return `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" stroke="${GRID}"/>`;
}

function text(x: number, y: number, words: string, attributes: string): string {
  const escaped = words.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
  return `<text x="${round(x)}" y="${round(y)}" fill="${INK}" ${attributes}>${escaped}</text>`;
}

function document(height: number, parts: readonly string[]): string {
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${round(height)}" viewBox="0 0 ${WIDTH} ${round(height)}" ${FONT}>`,
    '<rect width="100%" height="100%" fill="white"/>',
    ...parts,
    '</svg>',
    '',
  ].join('\n');
}
