// Completion for fish: a rule for each option and subcommand, in force where the words before it lead to its command.

import type { NodeShape, OptionShape, Value } from './shape.ts';

const quoted = (text: string): string => `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;

function valueWords(value: Value): string {
  if (value === 'file') return ' -r -F';
  return value === 'unknown' ? ' -x' : ` -x -a ${quoted(value.words.join(' '))}`;
}

function optionRule(start: string, { flags, about, value }: OptionShape): string {
  const names = flags.map((flag) => (flag.startsWith('--') ? `-l ${flag.slice(2)}` : `-s ${flag.slice(1)}`));
  return `${start} ${names.join(' ')} -d ${quoted(about.split('\n')[0] ?? '')}${value === null ? '' : valueWords(value)}`;
}

function nodeRules({ path, options, subcommands, values }: NodeShape): string[] {
  const start = `complete -c ${path.split(' ')[0] ?? ''} -n ${quoted(`__snowflock_at "${path}"`)}`;
  const words = values.filter((value) => value !== 'unknown');
  return [
    ...subcommands.map(({ name, about }) => `${start} -f -a ${name} -d ${quoted(about)}`),
    ...options.map((option) => optionRule(start, option)),
    ...words
      .slice(0, 1)
      .map((value) => `${start}${value === 'file' ? ' -F' : ` -f -a ${quoted(value.words.join(' '))}`}`),
  ];
}

export function fishCompletion(nodes: readonly NodeShape[]): string {
  const deeper = nodes.filter(({ path }) => path.includes(' ')).map(({ path }) => quoted(path));
  const taking = nodes.flatMap(({ path, options }) =>
    options.flatMap(({ flags, value }) =>
      value === null ? [] : flags.map((flag) => quoted(`${path} ${flag}`)),
    ),
  );
  const commands = nodes.filter(({ path }) => !path.includes(' ')).map(({ path }) => path);
  return `# SnowFlock for fish: snowflock completion fish > ~/.config/fish/completions/snowflock.fish
function __snowflock_at
    set -l words (commandline -opc)
    set -l at (path basename -- $words[1])
    set -l skip 0
    for word in $words[2..]
        if test $skip = 1
            set skip 0
            continue
        end
        test "$word" = -- && return 1 # what follows is a command of the VM
        switch "$at $word"
            case ${taking.join(' ')}
                set skip 1
            case ${deeper.join(' ')}
                set at "$at $word"
        end
    end
    test "$at" = "$argv[1]"
end
${commands.map((name) => `complete -c ${name} -f`).join('\n')}
${nodes.flatMap(nodeRules).join('\n')}
`;
}
