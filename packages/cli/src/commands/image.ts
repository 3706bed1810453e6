// snowflock image build|list

import { Command, InvalidArgumentError } from 'commander';
import { buildImage, IMAGE_NAMES, listImages, type ImageName } from '@snowflock/image';
import { interruptSignal } from '../failure.ts';
import { formatBytes, formatTable } from '../table.ts';

function parseImageName(text: string, previous: ImageName[] | undefined): ImageName[] {
  const name = IMAGE_NAMES.find((known) => known === text);
  if (!name)
    throw new InvalidArgumentError(`There is no image of that name; there are ${IMAGE_NAMES.join(', ')}.`);
  return [...(previous ?? []), name];
}

function buildCommand(): Command {
  return new Command('build')
    .description(
      `Builds images (${IMAGE_NAMES.join(', ')}; all when none is named). What is there already is not built again.`,
    )
    .argument('[name...]', 'which images', parseImageName)
    .option('--refresh', 'build again when Debian has newer packages')
    .option('--quiet-if-built', 'say nothing about images that are there already')
    .action(
      async (names: ImageName[] | undefined, options: { refresh?: boolean; quietIfBuilt?: boolean }) => {
        const signal = interruptSignal();
        for (const name of names?.length ? names : IMAGE_NAMES) {
          const startedAt = performance.now();
          let built = false;
          const onProgress = (text: string): void => {
            built = true;
            process.stderr.write(`image ${text}\n`);
          };
          const image = await buildImage(name, {
            signal,
            onProgress,
            ...(options.refresh ? { refresh: true } : {}),
          });
          const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
          if (built) process.stdout.write(`${name}: built in ${seconds} s: ${image.directory}\n`);
          else if (!options.quietIfBuilt)
            process.stdout.write(`${name}: there already: ${image.directory}\n`);
        }
      },
    );
}

function listCommand(): Command {
  return new Command('list')
    .description('Lists the images that are built, newest first.')
    .option('--json', 'print a JSON array')
    .action(async (options: { json?: boolean }) => {
      const images = await listImages();
      if (options.json) return void process.stdout.write(`${JSON.stringify(images)}\n`);
      const rows = images.map(({ name, hash, disk, createdAt, directory }) => [
        name,
        hash,
        disk ? formatBytes(disk.sizeBytes) : '-',
        createdAt.slice(0, 16).replace('T', ' '),
        directory,
      ]);
      const columns = ['IMAGE', 'HASH', 'DISK', 'BUILT', 'DIRECTORY'].map((title) => ({ title }));
      const lines =
        rows.length > 0 ? formatTable(columns, rows) : ["no images; 'snowflock image build' builds them"];
      process.stdout.write(`${lines.join('\n')}\n`);
    });
}

export function imageCommand(): Command {
  return new Command('image')
    .summary('build and list VM images')
    .description('The images that VMs start from, built from Debian packages.')
    .addCommand(buildCommand())
    .addCommand(listCommand());
}
