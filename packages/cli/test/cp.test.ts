import { describe, expect, it } from 'vitest';
import { parseCopySide } from '../src/index.ts';

describe('the sides of a copy', () => {
  it('are a path here or in a VM', () => {
    expect(parseCopySide('0:12:/etc/a:b')).toEqual({ vm: '0:12', path: '/etc/a:b' });
    expect(parseCopySide('./0:1:x')).toEqual({ vm: null, path: './0:1:x' });
    expect(parseCopySide('a/b')).toEqual({ vm: null, path: 'a/b' });
    expect(() => parseCopySide('0:1:')).toThrow(/names no path/);
    expect(() => parseCopySide('0:99999:/x')).toThrow(/out of range/);
  });
});
