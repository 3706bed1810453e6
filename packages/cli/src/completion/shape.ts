// What can be completed, of the commands' own definitions: a node for each command and subcommand.

import type { Argument, Command, Option } from 'commander';
import { IMAGE_NAMES } from '@snowflock/image';
import { SFLD_OPTIONS, SFMD_OPTIONS } from '@snowflock/protocol';

/** What may stand in a place: one of these words, a file, or something that no shell can know. */
export type Value = { readonly words: readonly string[] } | 'file' | 'unknown';

export interface OptionShape {
  readonly flags: readonly string[];
  readonly about: string;
  /** Null: takes none. */
  readonly value: Value | null;
}

export interface NodeShape {
  /** From the command on: `snowflock lab up`. */
  readonly path: string;
  readonly about: string;
  readonly options: readonly OptionShape[];
  readonly subcommands: readonly { readonly name: string; readonly about: string }[];
  /** Of its first arguments; the last one stands for all further ones. */
  readonly values: readonly Value[];
}

const PATH_PLACEHOLDER = /^(path|file|dir|cfgfile|src|dst)$/;

function valueOf(placeholder: string, choices: readonly string[] | undefined): Value {
  if (choices) return { words: choices };
  return PATH_PLACEHOLDER.test(placeholder) ? 'file' : 'unknown';
}

function optionShape({
  short,
  long,
  description,
  required,
  optional,
  flags,
  argChoices,
}: Option): OptionShape {
  const placeholder = /[<[](.*?)[\]>]/.exec(flags)?.[1] ?? '';
  return {
    flags: [short, long].filter((flag) => flag !== undefined),
    about: description,
    value: required || optional ? valueOf(placeholder, argChoices) : null,
  };
}

const argumentValue = (path: string, argument: Argument): Value =>
  valueOf(argument.name(), path === 'snowflock image build' ? IMAGE_NAMES : argument.argChoices);

/** The node of a command, and those of everything below it. */
export function nodesOf(command: Command, above = ''): NodeShape[] {
  const path = `${above} ${command.name()}`.trim();
  const node: NodeShape = {
    path,
    about: firstLine(command.summary() || command.description()),
    options: command.createHelp().visibleOptions(command).map(optionShape),
    subcommands: command.commands.map((each) => ({
      name: each.name(),
      about: firstLine(each.summary() || each.description()),
    })),
    values: command.registeredArguments.map((argument) => argumentValue(path, argument)),
  };
  return [node, ...command.commands.flatMap((each) => nodesOf(each, path))];
}

const firstLine = (text: string): string => (text.split('\n')[0] ?? '').replace(/\.$/, '');

/** The daemons' commands are no commander programs. */
export function daemonNodes(): NodeShape[] {
  const named = (names: readonly string[]): OptionShape[] =>
    names.map((name) => ({
      flags: [`--${name.replaceAll('_', '-')}`],
      about: `the option ${name}`,
      value: 'unknown',
    }));
  const config: OptionShape = { flags: ['--config'], about: 'its configuration', value: 'file' };
  const flag = (name: string, about: string): OptionShape => ({ flags: [`--${name}`], about, value: null });
  const running = [
    flag('check', 'say what the configuration comes to, and do nothing'),
    flag('debug', 'log more'),
    flag('pretty', 'log for people'),
  ];
  return (
    [
      ['sfmd', 'the master daemon', SFMD_OPTIONS],
      ['sfld', 'the local daemon of a host', SFLD_OPTIONS],
    ] as const
  ).flatMap(([name, about, options]) => {
    const common = [config, ...named(options)];
    const commands = [
      { name: 'start', about: 'start it in the background', options: [...running, ...common] },
      {
        name: 'stop',
        about: 'stop it',
        options: [...(name === 'sfld' ? [flag('vms', "end this host's VMs first")] : []), ...common],
      },
      { name: 'status', about: 'say how it does', options: common },
      { name: 'run', about: 'run it in the foreground', options: [...running, ...common] },
    ];
    const help = flag('help', 'say how it is used');
    return [
      {
        path: name,
        about,
        options: [help],
        subcommands: commands.map(({ name, about }) => ({ name, about })),
        values: [],
      },
      ...commands.map((each) => ({
        path: `${name} ${each.name}`,
        about: each.about,
        options: each.options,
        subcommands: [],
        values: [],
      })),
    ];
  });
}
