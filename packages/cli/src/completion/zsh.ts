// Completion for zsh: the same walk as in bash, with what each thing is for beside it.

import type { NodeShape, Value } from './shape.ts';

const quoted = (text: string): string => `'${text.replaceAll("'", `'\\''`)}'`;
/** For _describe: a colon in a name would end it. */
const described = (name: string, about: string): string =>
  quoted(`${name.replaceAll(':', '\\:')}:${about.split('\n')[0] ?? ''}`);

function offer(value: Value): string {
  if (value === 'file') return '_files';
  return value === 'unknown' ? '_message value' : `compadd -- ${value.words.map(quoted).join(' ')}`;
}

function nodeCase({ path, options, subcommands, values }: NodeShape): string {
  const flags = options.flatMap((option) => option.flags.map((flag) => described(flag, option.about)));
  const commands = subcommands.map(({ name, about }) => described(name, about));
  const words =
    [...new Set(values.map(offer))].join('; ') ||
    (commands.length > 0 ? '_describe command commands' : '_message argument');
  return `    ${quoted(path)}) flags=(${flags.join(' ')}) commands=(${commands.join(' ')}) offer=${quoted(words)} ;;`;
}

function valueCases({ path, options }: NodeShape): string[] {
  const taking = options.flatMap(({ flags, value }) =>
    value === null ? [] : [{ flags, text: offer(value) }],
  );
  return [...Map.groupBy(taking, ({ text }) => text)].map(([text, group]) => {
    const cases = group.flatMap(({ flags }) => flags.map((flag) => quoted(`${path} ${flag}`)));
    return `    ${cases.join(' | ')}) value=${quoted(text)} ;;`;
  });
}

export function zshCompletion(nodes: readonly NodeShape[]): string {
  const deeper = nodes.filter(({ path }) => path.includes(' ')).map(({ path }) => quoted(path));
  const commands = nodes.filter(({ path }) => !path.includes(' ')).map(({ path }) => path);
  return `#compdef ${commands.join(' ')}
# SnowFlock for zsh. Put 'source <(snowflock completion zsh)' into ~/.zshrc, after compinit.
_snowflock_value() {
  value=
  case "$1" in
${nodes.flatMap(valueCases).join('\n')}
  esac
}
_snowflock() {
  local given=$words[CURRENT] at=\${words[1]:t} value offer i
  local -a flags commands
  for ((i = 2; i < CURRENT; i++)); do
    [[ $words[i] == -- ]] && return # what follows is a command of the VM
    _snowflock_value "$at $words[i]"
    if [[ -n $value ]]; then
      if ((i + 1 == CURRENT)); then
        eval $value
        return
      fi
      ((i++))
      continue
    fi
    case "$at $words[i]" in
    ${deeper.join('|')}) at="$at $words[i]" ;;
    esac
  done
  case "$at" in
${nodes.map(nodeCase).join('\n')}
  *) return ;;
  esac
  if [[ $given == -* ]]; then _describe option flags; else eval $offer; fi
}
compdef _snowflock ${commands.join(' ')}
`;
}
