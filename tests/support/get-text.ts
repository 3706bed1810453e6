// GET of what is not JSON, over a daemon's unix socket.

import * as http from 'node:http';

const GET_MS = 15_000;

export function getText(socketPath: string, path: string): Promise<string> {
  return new Promise((resolve, reject) => {
    http
      .get({ socketPath, path, signal: AbortSignal.timeout(GET_MS) }, (response) => {
        let text = '';
        response.on('data', (chunk: Buffer) => (text += chunk.toString()));
        response.on('end', () => resolve(text));
        response.on('error', reject);
      })
      .on('error', reject);
  });
}
