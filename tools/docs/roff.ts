// Text for roff: nothing in it is an instruction, and what people copy (a dash of an option) stays what it is.

/** For literal words: every dash is a dash. */
export function escapeWords(text: string): string {
  return escapeText(text).replaceAll('-', '\\-');
}

/** For prose on a line of its own. */
export function escapeLine(text: string): string {
  return escapeText(text)
    .replace(/^(?=[.'])/, '\\&')
    .replace(
      /(^|[\s(])(--?)(?=[a-z])/g,
      (_all, before: string, dashes: string) => before + dashes.replaceAll('-', '\\-'),
    );
}

export const bold = (text: string): string => `\\fB${escapeWords(text)}\\fR`;
export const italic = (text: string): string => `\\fI${escapeWords(text)}\\fR`;

function escapeText(text: string): string {
  return text.replaceAll('\\', '\\e');
}
