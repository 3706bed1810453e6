// The reference of libsf, of the comments in sf.h.

/** Each comment that begins a line, with the declarations up to the next one; those before the first stand without. */
export function cReference(header: string): string {
  const body = header
    .slice(header.indexOf('#define SF_TICKET_SIZE'), header.lastIndexOf('#ifdef __cplusplus'))
    .trim();
  const parts = body.split(/^(?=\/\*)/m).map((part) => {
    const comment = /^\/\*([\s\S]*?)\*\//.exec(part);
    const text = (comment?.[1] ?? '').split('\n').map((line) => line.replace(/^\s*\*? ?/, '').trimEnd());
    const code = part.slice(comment?.[0].length ?? 0).trim();
    return `${prose(text)}${code === '' ? '' : `\`\`\`c\n${code}\n\`\`\`\n`}`;
  });
  return `# C: libsf

\`#include <sf.h>\`, link with \`-lsf\`. For programs in a VM.

${parts.join('\n')}`;
}

/** `---- title ----` is a heading. */
function prose(lines: readonly string[]): string {
  const text = lines.join('\n').trim();
  if (text === '') return '';
  return `${text
    .replace(/^---- (.*) ----$/gm, '## $1')
    .replaceAll('*', '\\*')
    .replace(/_(?=\\\*)|(?<=\\\*)_/g, '\\_')}\n\n`;
}
