import { createRequire } from 'node:module'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { packageFolder, runProgram, useCopies } from './support.js'

const copy = useCopies(['first', 'second'], ['prebuilds', 'package.json'])
const platform = `${process.platform}-${process.arch}`

test('an addon that is joined to one copy of core refuses another one', async () => {
  // Worker threads have a registry of their own, so only the addon, which they share, can see this.
  const layout = join(packageFolder, `../layout/prebuilds/${platform}/moe_ep_layout.node`)
  const cores = ['first', 'second'].map((name) => join(copy(name), `prebuilds/${platform}/moe_ep_core.node`))
  const output = await runProgram(`
    import { createRequire } from 'node:module'
    const require = createRequire(${JSON.stringify(createRequire(import.meta.url).resolve('../package.json'))})
    const [first, second] = ${JSON.stringify(cores)}.map((path) => require(path))
    const layout = require(${JSON.stringify(layout)})
    layout.initialize(first.coreApi)
    layout.initialize(first.coreApi)
    for (const table of [second.coreApi, {}, undefined]) {
      try {
        layout.initialize(table)
      } catch (error) {
        console.log(error.code)
      }
    }
  `)
  expect(output).toBe('ERR_MOE_EP_DUPLICATE_CORE\n'.repeat(3))
})
