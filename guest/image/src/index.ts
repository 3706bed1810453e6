// Images that SnowFlock VMs start from: recipes, builder, store. docs/images.md.

export { buildImage, type BuildOptions } from './build.ts';
export { COMMANDS as GUEST_COMMANDS } from './guest-tools.ts';
export { IMAGE_NAMES, type ImageDisk, type ImageManifest, type ImageName } from './manifest.ts';
export { findImage, listImages, storeDirectory } from './store.ts';
