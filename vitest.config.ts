import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    projects: ['packages/*', 'apps/*', 'tooling/*/vitest.config.ts', 'tooling/software-cuda/*/vitest.config.ts'],
    reporters: ['default', './tooling/vitest/closing-line.mjs'],
    maxWorkers: 2,
  },
})
