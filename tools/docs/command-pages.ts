// Manual pages of the host commands that commander describes.

import type { Command } from 'commander';
import {
  sfseedProgram,
  sfstateProgram,
  snowflockProgram,
  startupProgram,
} from '../../packages/cli/src/index.ts';
import type { Entry, ManPage } from './man-page.ts';
import { proseOf, type ProseSection } from './prose.ts';

const EXIT_STATUS = `- 0: it did what it was asked to.
- 1: it did not; one line on standard error says what happened and what to do.
- 2: it was used wrongly.`;

/** `others`: the pages that are not made here, for the list of all commands. */
export function commandPages(prose: readonly ProseSection[], others: readonly ManPage[]): ManPage[] {
  const snowflock = snowflockProgram();
  const subcommands = snowflock.commands.map((command) =>
    pageOf(command, `snowflock-${command.name()}`, prose),
  );
  const alone = [sfseedProgram(), sfstateProgram(), startupProgram()].map((command) =>
    pageOf(command, command.name(), prose),
  );
  return [
    {
      name: 'snowflock',
      section: 1,
      summary: 'fork for virtual machines',
      synopsis: ['snowflock <command> [options]'],
      description: snowflock.description(),
      lists: [
        { title: 'COMMANDS', entries: listed(subcommands) },
        { title: 'OTHER COMMANDS', entries: listed([...alone, ...others]) },
      ],
      sections: [{ title: 'EXIT STATUS', text: EXIT_STATUS }],
    },
    ...subcommands,
    ...alone,
  ];
}

function listed(pages: readonly ManPage[]): Entry[] {
  return pages.map(({ name, section, summary }) => ({ term: `${name}(${section})`, text: summary }));
}

function pageOf(command: Command, name: string, prose: readonly ProseSection[]): ManPage {
  const { text, own } = proseOf(prose, name);
  const described = command.description();
  const leaves = command.commands.length > 0 ? command.commands : [command];
  const words = name.replace('-', ' ').replace('snowflock startup', 'snowflock-startup');
  const synopsis = leaves.map(
    (leaf) => `${words}${leaf === command ? '' : ` ${leaf.name()}`} ${leaf.usage()}`,
  );
  const asksSfld = leaves.some((leaf) =>
    leaf.options.some(
      ({ flags, description }) => flags.startsWith('--socket') && description.includes('sfld'),
    ),
  );
  const which = prose.find(({ heading }) => heading === 'Which sfld');
  return {
    name,
    section: 1,
    summary: (command.summary() || described.split('\n')[0] || '').replace(/\.$/, ''),
    synopsis,
    description: own || described === '' ? text : `${described}\n\n${text}`,
    lists: [
      {
        title: 'COMMANDS',
        entries: command.commands.map((leaf) => ({ term: leaf.name(), text: leaf.description() })),
      },
      ...(command.commands.length > 0 ? [] : [{ title: 'ARGUMENTS', entries: argumentsOf(command) }]),
      ...leaves.map((leaf) => ({
        title: leaf === command ? 'OPTIONS' : `OPTIONS OF ${leaf.name().toUpperCase()}`,
        entries: [...(leaf === command ? [] : argumentsOf(leaf)), ...optionsOf(leaf)],
      })),
    ],
    sections: [
      ...(asksSfld && which ? [{ title: 'WHICH SFLD', text: which.text }] : []),
      { title: 'EXIT STATUS', text: EXIT_STATUS },
    ],
  };
}

function argumentsOf(command: Command): Entry[] {
  const help = command.createHelp();
  return help
    .visibleArguments(command)
    .map((argument) => ({ term: help.argumentTerm(argument), text: help.argumentDescription(argument) }));
}

function optionsOf(command: Command): Entry[] {
  const help = command.createHelp();
  return help
    .visibleOptions(command)
    .map((option) => ({ term: help.optionTerm(option), text: help.optionDescription(option) }));
}
