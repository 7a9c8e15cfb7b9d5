import { defineProject, mergeConfig } from 'vitest/config'
import shared from '../../vitest.shared.js'

export default mergeConfig(
  shared,
  defineProject({ test: { name: 'gpu-bundle', include: ['test/**/*.test.mjs'], typecheck: { enabled: false } } }),
)
