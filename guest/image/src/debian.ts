// The recipe of `debian`: Debian 12 with Python, BLAST and real genomes.

import { SnowflockError } from '@snowflock/protocol';
import type { Recipe } from './recipe.ts';

export const debian: Recipe = {
  packages: [],
  async build() {
    throw new SnowflockError('unavailable', 'the debian image is not there yet');
  },
};
