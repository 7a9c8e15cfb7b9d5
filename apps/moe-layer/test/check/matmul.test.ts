import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { createMatmul } from '../../src/check/matmul.js'

const size = (min: number) => fc.integer({ min, max: 9 })
const numbers = (length: number) => fc.array(fc.integer({ min: -9, max: 9 }), { minLength: length, maxLength: length })

describe.each(['onnxruntime', 'typescript'] as const)('createMatmul with %s', (engine) => {
  it('multiplies a with the transpose of b, for any sizes', async () => {
    const matmul = await createMatmul({ engine })
    expect(matmul.engine).toBe(engine)
    const cases = fc
      .tuple(size(0), size(1), size(1))
      .chain(([m, n, k]) => fc.record({ a: numbers(m * k), b: numbers(n * k), k: fc.constant(k) }))
    await fc.assert(
      fc.asyncProperty(cases, async ({ a, b, k }) => {
        const expected: number[] = []
        for (let row = 0; row < a.length / k; row++) {
          for (let column = 0; column < b.length / k; column++) {
            let sum = 0
            for (let i = 0; i < k; i++) sum += a[row * k + i]! * b[column * k + i]!
            expected.push(sum + 0)
          }
        }
        const product = await matmul.product(Float32Array.from(a), Float32Array.from(b), k)
        expect(Array.from(product, (value) => value + 0)).toEqual(expected)
      }),
      { numRuns: 40 },
    )
    await matmul.close()
  })
})

describe('createMatmul', () => {
  it('takes onnxruntime where it is installed, as it is here', async () => {
    const matmul = await createMatmul()
    expect(matmul.engine).toBe('onnxruntime')
    await matmul.close()
  })

  it('computes the same in blocks of columns as in one', async () => {
    const matmul = await createMatmul({ engine: 'typescript' })
    const a = Float32Array.from({ length: 3 * 40_000 }, (_, i) => (i % 7) - 3)
    const b = Float32Array.from({ length: 5 * 40_000 }, (_, i) => (i % 5) - 2)
    const product = await matmul.product(a, b, 40_000)
    const last = await matmul.product(a.subarray(80_000), b.subarray(160_000), 40_000)
    expect(product).toHaveLength(15)
    expect(product[14]).toBe(last[0])
  })
})
