import { defineConfig } from 'tsup'
import { sharedBuild } from '../../tsup.shared.js'

export default defineConfig({ ...sharedBuild, entry: { index: 'src/index.ts', bin: 'src/cli/bin.ts' } })
