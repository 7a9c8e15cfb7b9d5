import { defineConfig } from 'vitest/config'

const conditions = ['@moe-ep/source', 'node', 'import', 'default']

/** Settings every package's vitest project starts from: tests read the sources of sibling packages, never their dist. */
export default defineConfig({
  resolve: { conditions },
  ssr: { resolve: { conditions } },
  test: {
    include: ['test/**/*.test.ts'],
    typecheck: { enabled: true, include: ['test/**/*.test-d.ts'] },
    // onnxruntime-node would write files of its own into the temporary folder.
    env: { ORT_DISABLE_TELEMETRY: '1' },
    pool: 'forks',
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
})
