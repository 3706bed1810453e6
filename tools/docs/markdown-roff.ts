// The Markdown that this repository's documents are written in, as roff: paragraphs, code, lists, tables, emphasis and links.

import { bold, escapeLine, escapeWords, italic } from './roff.ts';

export function markdownToRoff(markdown: string): string[] {
  const lines = markdown.replace(/\n+$/, '').split('\n');
  const out: string[] = [];
  for (let at = 0; at < lines.length;) {
    const line = lines[at] ?? '';
    if (line.trim() === '') at += 1;
    else if (line.startsWith('```')) {
      const end = lines.indexOf('```', at + 1);
      out.push('.PP', '.RS 4', '.nf', ...lines.slice(at + 1, end).map(codeLine), '.fi', '.RE');
      at = end + 1;
    } else if (line.startsWith('|')) {
      const end = endOf(lines, at, (each) => each.startsWith('|'));
      out.push(...tableLines(lines.slice(at, end)));
      at = end;
    } else if (LIST.test(line)) {
      const end = endOf(lines, at, (each) => LIST.test(each) || /^\s+\S/.test(each));
      out.push(...listLines(lines.slice(at, end)));
      at = end;
    } else {
      const end = endOf(
        lines,
        at,
        (each) => each.trim() !== '' && !/^(```|\|)/.test(each) && !LIST.test(each),
      );
      out.push('.PP', ...lines.slice(at, end).map((each) => inline(each.trim())));
      at = end;
    }
  }
  return out[0] === '.PP' ? out.slice(1) : out; // right after a heading
}

const LIST = /^(?:[-*]|\d+\.) /;

function endOf(lines: readonly string[], from: number, belongs: (line: string) => boolean): number {
  const end = lines.findIndex((line, at) => at > from && !belongs(line));
  return end < 0 ? lines.length : end;
}

function codeLine(line: string): string {
  return escapeWords(line).replace(/^(?=[.'])/, '\\&');
}

function listLines(lines: readonly string[]): string[] {
  return lines.flatMap((line) => {
    const item = /^([-*]|\d+\.) (.*)$/.exec(line);
    if (!item) return [inline(line.trim())];
    const [, mark = '', text = ''] = item;
    return [`.IP ${/\d/.test(mark) ? mark : '\\(bu'} 4`, inline(text)];
  });
}

/** The first column names what the others tell about. */
function tableLines(lines: readonly string[]): string[] {
  const rows = lines.map((line) =>
    line
      .split(/(?<!\\)\|/)
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
  const [header = [], , ...body] = rows;
  return body.flatMap(([term = '', first = '', ...more]) => {
    const further = more.flatMap((cell, at) => (cell === '' ? [] : [`${header[at + 2] ?? ''}: ${cell}`]));
    return ['.TP', inline(term), inline([first, ...further].filter((cell) => cell !== '').join('; '))];
  });
}

/** One line; marks of emphasis do not reach over its end. */
function inline(line: string): string {
  const parts = line.split(/(`[^`]+`|\*\*[^*]+\*\*|\b_[^_]+_\b|\[[^\]]+\]\([^)]+\))/);
  const text = parts
    .map((part) => {
      const link = /^\[([^\]]+)\]\(([^)#]*)[^)]*\)$/.exec(part);
      if (link)
        return `${escapeLine(link[1] ?? '')}${/\.md$/.test(link[2] ?? '') ? ` (docs/${link[2]})` : ''}`;
      if (/^`/.test(part)) return bold(part.slice(1, -1));
      if (/^\*\*/.test(part)) return bold(part.slice(2, -2));
      if (/^_.*_$/.test(part)) return italic(part.slice(1, -1));
      return escapeLine(part);
    })
    .join('');
  return text.replace(/^(?=[.'])/, '\\&');
}
