import type { Options } from 'tsup'

/** Build settings shared by all published packages: ESM and CJS with types, for the oldest supported Node. */
export const sharedBuild: Options = {
  entry: ['src/index.ts'],
  format: ['esm', 'cjs'],
  dts: true,
  target: 'node20',
  platform: 'node',
  shims: true,
  sourcemap: true,
  clean: true,
}
