// What the page servers need of this package, without the control plane: a memtap's threads load no HTTP and no TLS.

export * from './compressed-pages.ts';
export * from './errors.ts';
export * from './mcdist-datagram.ts';
export * from './page-wait-bounds.ts';
export * from './page-wire.ts';
