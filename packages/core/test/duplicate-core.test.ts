import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { expect, test } from 'vitest'
import { packageFolder, runProgram, useCopies } from './support.js'

const copy = useCopies(['first', 'second'], ['dist', 'prebuilds', 'package.json'])
const moduleOf = (folder: string): string => JSON.stringify(pathToFileURL(join(folder, 'dist/index.js')).href)

test('two copies in one process: the second one to be used says so and names both', async () => {
  const output = await runProgram(`
    const first = await import(${moduleOf(copy('first'))})
    const second = await import(${moduleOf(copy('second'))})
    first.Tensor.zeros([2], 'f32', first.getDevice('cpu'))
    try {
      second.Tensor.zeros([2], 'f32')
    } catch (error) {
      console.log(JSON.stringify({ code: error.code, message: error.message, ours: first.MoeEpError.isInstance(error) }))
    }
    console.log(first.Tensor.from([1, 2], [2], 'f32', first.getDevice('cpu')).toNumbers().join())
  `)
  const [error, values] = output.trim().split('\n') as [string, string]
  const { code, message, ours } = JSON.parse(error) as { code: string; message: string; ours: boolean }
  expect([code, ours, values]).toEqual(['ERR_MOE_EP_DUPLICATE_CORE', true, '1,2'])
  for (const part of ['two copies of @moe-ep/core', copy('first'), copy('second'), 'npm ls @moe-ep/core'])
    expect(message).toContain(part)
})

test('the ESM and the CJS build of one package work together', async () => {
  const output = await runProgram(`
    import { createRequire } from 'node:module'
    const esm = await import(${moduleOf(packageFolder)})
    const cjs = createRequire(${JSON.stringify(join(packageFolder, 'package.json'))})('./dist/index.cjs')
    const tensor = cjs.Tensor.from([3, 4], [2], 'f32')
    esm.requireTensor('x', tensor, { dtype: 'f32', shape: [2] })
    const stream = esm.getDevice('cpu').createStream({ threads: 1 })
    const event = new cjs.Event(cjs.getDevice('cpu'))
    stream.fail('ERR_MOE_EP_CAPACITY', 'full')
    stream.record(event)
    const error = await event.synchronize().catch((reason) => reason)
    console.log(error instanceof esm.MoeEpError, error instanceof cjs.MoeEpError, esm.MoeEpError.isInstance(error, 'ERR_MOE_EP_CAPACITY'))
    await stream.synchronize().catch(() => {})
    await stream.close()
  `)
  expect(output).toBe('false true true\n')
})
