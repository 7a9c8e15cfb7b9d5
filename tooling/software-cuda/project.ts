import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { defineProject, mergeConfig } from 'vitest/config'
import shared from '../../vitest.shared.js'

const pathOf = (path: string): string => fileURLToPath(new URL(path, import.meta.url))
const preload = `--import=${new URL('redirect.mjs', import.meta.url).href}`
const isBuilt = existsSync(pathOf(`prebuilds/${process.platform}-${process.arch}/libsoftware_cuda.so`))

/** Which of a package's suites run here, and how often they do what they do many times. */
export interface Choice {
  readonly exclude?: readonly string[]
  /** MOE_EP_TEST_REPEATS, unless the environment has it. */
  readonly repeats?: number
}

/**
 * A package's suites on a cuda device that is software, also in the processes that tests start. Where that could not be built,
 * one test that is skipped and says so.
 */
export function onSoftwareCuda(name: string, { exclude = [], repeats }: Choice = {}) {
  const suites = {
    root: pathOf(`../../packages/${name}`),
    exclude: ['**/node_modules/**', ...exclude],
    env: {
      MOE_EP_DEVICE: 'cuda:0',
      NODE_OPTIONS: preload,
      ...(repeats !== undefined && { MOE_EP_TEST_REPEATS: process.env['MOE_EP_TEST_REPEATS'] ?? String(repeats) }),
    },
    execArgv: [preload],
  }
  const absent = { root: pathOf('.') }
  return mergeConfig(
    shared,
    defineProject({
      test: { name: `${name}-on-software-cuda`, ...(isBuilt ? suites : absent), typecheck: { enabled: false } },
    }),
  )
}
