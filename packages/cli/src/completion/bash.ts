// Completion for bash: one function for all commands, driven by two tables.

import type { NodeShape, Value } from './shape.ts';

const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;

/** Words to be offered, or @file, or nothing. */
function offered(value: Value): string {
  if (value === 'file') return '@file';
  return value === 'unknown' ? '' : value.words.join(' ');
}

function nodeCase({ path, options, subcommands, values }: NodeShape): string {
  const flags = options.flatMap((option) => option.flags).join(' ');
  const words = [...subcommands.map(({ name }) => name), ...new Set(values.map(offered))].filter(
    (each) => each !== '',
  );
  return `    ${quoted(path)}) flags=${quoted(flags)} words=${quoted(words.join(' '))} ;;`;
}

function valueCases({ path, options }: NodeShape): string[] {
  const taking = options.flatMap(({ flags, value }) =>
    value === null ? [] : [{ flags, text: offered(value) }],
  );
  return [...Map.groupBy(taking, ({ text }) => text)].map(([text, group]) => {
    const cases = group.flatMap(({ flags }) => flags.map((flag) => quoted(`${path} ${flag}`)));
    return `    ${cases.join(' | ')}) value=${quoted(text)} takes=1 ;;`;
  });
}

export function bashCompletion(nodes: readonly NodeShape[]): string {
  const deeper = nodes.filter(({ path }) => path.includes(' ')).map(({ path }) => quoted(path));
  const commands = nodes.filter(({ path }) => !path.includes(' ')).map(({ path }) => path);
  return `# SnowFlock for bash. Put 'source <(snowflock completion bash)' into ~/.bashrc.
_snowflock_value() {
  takes= value=
  case "$1" in
${nodes.flatMap(valueCases).join('\n')}
  esac
}
_snowflock_offer() {
  local list=$1
  if [[ $list == @file ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$2")
  else
    mapfile -t COMPREPLY < <(compgen -W "$list" -- "$2")
  fi
}
_snowflock() {
  local current=\${COMP_WORDS[COMP_CWORD]} at=\${COMP_WORDS[0]##*/} word takes value flags words i
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=\${COMP_WORDS[i]}
    [[ $word == -- ]] && return # what follows is a command of the VM
    _snowflock_value "$at $word"
    if [[ $takes ]]; then
      if ((i + 1 == COMP_CWORD)); then
        _snowflock_offer "$value" "$current"
        return
      fi
      ((i++))
      continue
    fi
    case "$at $word" in
    ${deeper.join(' | ')}) at="$at $word" ;;
    esac
  done
  case "$at" in
${nodes.map(nodeCase).join('\n')}
  *) return ;;
  esac
  if [[ $current == -* ]]; then _snowflock_offer "$flags" "$current"; else _snowflock_offer "$words" "$current"; fi
}
complete -F _snowflock ${commands.join(' ')}
`;
}
