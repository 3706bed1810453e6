import { expect, it } from 'vitest';
import { buildQemuArgs, vmPaths, type VmSpec } from '../src/index.ts';

const spec: VmSpec = {
  name: 'sf-0:0',
  accel: 'tcg',
  vcpus: 2,
  memoryMib: 256,
  paths: vmPaths('/run/x'),
  origin: { kind: 'boot', kernel: '/k', initrd: '/i', append: 'console=ttyS0' },
  ram: { kind: 'anonymous' },
  disk: { overlay: '/d/disk-0.qcow2', backing: '/d/base.img', backingFormat: 'raw' },
  nic: { tap: 'sft0', mac: '52:00:00:00:00:00', mtu: 1450 },
};
const clone: VmSpec = {
  ...spec,
  origin: { kind: 'incoming' },
  ram: { kind: 'file', path: '/m/ram', share: false },
  disk: { overlay: '/d/c.qcow2', backing: '/m/disk', backingFormat: 'raw' },
};

const devices = (args: string[]): string[] =>
  args.filter((_, i) => args[i - 1] === '-device' || args[i - 1] === '-machine');

it('gives parent and clone the same machine and devices, in the same order', () => {
  expect(devices(buildQemuArgs(clone))).toEqual(devices(buildQemuArgs(spec)));
});

it('puts the RAM of a master VM into anonymous memory and that of a clone on the memtap', () => {
  expect(buildQemuArgs(spec)).toContain('memory-backend-ram,id=ram,size=256M');
  expect(buildQemuArgs(clone)).toContain('memory-backend-file,id=ram,size=256M,share=off,mem-path=/m/ram');
});

it('lets a clone wait for its device state and boots nothing in it', () => {
  const args = buildQemuArgs(clone);
  expect(args.slice(-3)).toEqual(['-S', '-incoming', 'defer']);
  expect(args).not.toContain('-kernel');
});

it('has no more ports than are used: each is read when a device state is loaded', () => {
  expect(devices(buildQemuArgs(clone))).toContain('virtio-serial-pci,id=vs0,max_ports=2');
});

it('reads nothing from a disk while it starts: the geometry is given', () => {
  expect(buildQemuArgs(clone).join(' ')).toMatch(/virtio-blk-pci,drive=disk0,cyls=\d+,heads=\d+,secs=\d+/);
});
