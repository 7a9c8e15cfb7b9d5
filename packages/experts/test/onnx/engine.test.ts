import { MoeEpError } from '@moe-ep/core'
import { describe, expect, it } from 'vitest'
import { OnnxExpertEngine, referenceExpert } from '../../src/index.js'
import { randomValues, relativeError } from '../random.js'

const sizes = { hidden: 48, intermediate: 20 }
const w13 = randomValues(2 * sizes.intermediate * sizes.hidden, 1)
const w2 = randomValues(sizes.hidden * sizes.intermediate, 2)

async function withEngine(use: (engine: OnnxExpertEngine) => Promise<void>, threads = 1): Promise<void> {
  const engine = await OnnxExpertEngine.create({ ...sizes, threads })
  try {
    await use(engine)
  } finally {
    await engine.close()
  }
}

describe('OnnxExpertEngine', () => {
  it.each([
    [1, 1],
    [7, 1],
    [130, 2],
  ])('agrees with the reference on %d rows with %d threads', (rows, threads) =>
    withEngine(async (engine) => {
      const x = randomValues(rows * sizes.hidden, 3)
      const y = await engine.run(x, w13, w2)
      expect(relativeError(y, referenceExpert({ ...sizes, x, w13, w2 }))).toBeLessThan(1e-5)
    }, threads),
  )

  it('serves several experts and row counts with one session', () =>
    withEngine(async (engine) => {
      const cases = [5, 1, 64, 2].map((rows, seed) => ({
        x: randomValues(rows * sizes.hidden, 10 + seed),
        w13: randomValues(w13.length, 20 + seed),
        w2: randomValues(w2.length, 30 + seed),
      }))
      const results = await Promise.all(cases.map((one) => engine.run(one.x, one.w13, one.w2)))
      for (const [i, one] of cases.entries()) {
        expect(relativeError(results[i]!, referenceExpert({ ...sizes, ...one }))).toBeLessThan(1e-5)
      }
    }))

  it('reads and writes views in place and leaves their neighbours alone', () =>
    withEngine(async (engine) => {
      const x = randomValues(3 * sizes.hidden, 4)
      const input = new Float32Array(x.length + 10)
      input.set(x, 5)
      const output = new Float32Array(x.length + 2).fill(7)
      const out = output.subarray(1, x.length + 1)
      expect(await engine.run(input.subarray(5, x.length + 5), w13, w2, { out })).toBe(out)
      expect(relativeError(out, referenceExpert({ ...sizes, x, w13, w2 }))).toBeLessThan(1e-5)
      expect([output[0], output.at(-1)]).toEqual([7, 7])
    }))

  it('takes and fills shared memory', () =>
    withEngine(async (engine) => {
      const x = new Float32Array(new SharedArrayBuffer(4 * sizes.hidden))
      x.set(randomValues(sizes.hidden, 5))
      const out = new Float32Array(new SharedArrayBuffer(4 * sizes.hidden))
      expect(await engine.run(x, w13, w2, { out })).toBe(out)
      expect(relativeError(out, referenceExpert({ ...sizes, x, w13, w2 }))).toBeLessThan(1e-5)
    }))

  it('gives nothing for no rows', () =>
    withEngine(async (engine) => {
      expect(await engine.run(new Float32Array(0), w13, w2)).toHaveLength(0)
    }))

  const row = new Float32Array(sizes.hidden)
  it.each<[string, Parameters<OnnxExpertEngine['run']>]>([
    ['x', [new Float32Array(sizes.hidden + 1), w13, w2]],
    ['w13', [row, w13.subarray(1), w2]],
    ['w2', [row, w13, w13]],
    ['out', [row, w13, w2, { out: new Float32Array(1) }]],
  ])('refuses a wrong %s by name', (argument, operands) =>
    withEngine(async (engine) => {
      const error: unknown = await engine.run(...operands).catch((reason: unknown) => reason)
      expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_ARGUMENT') && error.details.argument).toBe(argument)
    }),
  )

  it('refuses sizes and threads that are not positive integers', async () => {
    for (const wrong of [{ hidden: 0 }, { intermediate: -1 }, { threads: 0 }, { threads: 0.5 }]) {
      await expect(OnnxExpertEngine.create({ ...sizes, ...wrong })).rejects.toMatchObject({
        code: 'ERR_MOE_EP_ARGUMENT',
        details: { argument: Object.keys(wrong)[0] },
      })
    }
  })

  it('ends runs in flight before it closes, then refuses more, and closes twice', async () => {
    const engine = await OnnxExpertEngine.create(sizes)
    const x = randomValues(sizes.hidden, 6)
    const running = engine.run(x, w13, w2)
    await engine.close()
    await engine.close()
    expect(await running).toHaveLength(sizes.hidden)
    await expect(engine.run(x, w13, w2)).rejects.toMatchObject({ code: 'ERR_MOE_EP_RELEASED' })
  })
})
