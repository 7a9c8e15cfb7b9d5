import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { defineProject, mergeConfig } from 'vitest/config'
import shared from '../../vitest.shared.js'

const pathOf = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const preload = `--import=${new URL('redirect.mjs', import.meta.url).href}`
const isBuilt = existsSync(pathOf(`prebuilds/${process.platform}-${process.arch}/libsoftware_cuda.so`))

/**
 * A package's suite on a cuda device that is software, also in the processes that tests start. Where the toolkit, whose headers
 * it takes to build, is not there, one test that is skipped and says so.
 */
export const onSoftwareCuda = (name: string, exclude: readonly string[]) =>
  mergeConfig(
    shared,
    defineProject({
      test: {
        name: `${name}-on-software-cuda`,
        ...(isBuilt
          ? {
              root: pathOf(`../../packages/${name}`),
              exclude: ['**/node_modules/**', ...exclude],
              env: { MOE_EP_DEVICE: 'cuda:0', NODE_OPTIONS: preload },
              execArgv: [preload],
            }
          : { root: pathOf('.'), include: ['test/absent.test.ts'] }),
        typecheck: { enabled: false },
      },
    }),
  )
