import { Tensor } from '@moe-ep/core'
import { describe, expect, test } from 'vitest'
import { countExpertNumTokens, moePermute, permute, permuteMasked } from '../src/index.js'
import { failure, randomBits, randomNumbers } from './support.js'

// On a GPU these take two launches, and the more experts there are, the fewer warps of a block count.
describe.each([
  ['33 experts', 33],
  ['1000 experts', 1000],
  ['5000 experts', 5000],
])('with 3000 slots of %s', (_, numLocalExperts) => {
  const [tokens, topk] = [1500, 2]
  const ids = Array.from(randomNumbers(tokens * topk, numLocalExperts), (value) =>
    Math.max(-1, Math.floor(((value + 0.9) / 2) * numLocalExperts)),
  )
  // One expert has more slots than any other one.
  for (let slot = 7; slot < ids.length; slot += 10) ids[slot] = numLocalExperts - 2
  const counts = new Int32Array(numLocalExperts)
  for (const id of ids) if (id >= 0) counts[id]!++
  const needed = counts.reduce((sum, count) => sum + Math.ceil(count / 4) * 4, 0)
  const x = randomBits([tokens, 32], 'bf16')
  const topkIdx = Tensor.from(ids, [tokens, topk], 'i32')
  const base = { topkIdx, numLocalExperts, alignment: 4 }
  const marked = (...shape: number[]): Tensor =>
    Tensor.from(new Array<number>(shape.reduce((all, size) => all * size, 1)).fill(9), shape, 'i32')
  const untouched = async (tensor: Tensor): Promise<void> =>
    expect(new Set(await tensor.readNumbers())).toEqual(new Set([9]))

  test('permute says how many rows are needed, and writes nothing', async () => {
    const out = {
      expertIds: marked(needed - 1),
      expertEnd: marked(numLocalExperts),
      inversePermutation: marked(tokens, topk),
    }
    permute(x, { ...base, out })
    const message = expect.stringContaining(`${needed - 1} rows, but ${needed} are needed`)
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', message })
    for (const tensor of Object.values(out)) await untouched(tensor)
  })

  test('permute takes exactly as many', async () => {
    const out = permute(x, { ...base, out: { expertIds: marked(needed) } })
    expect(Int32Array.from(await out.expertNumTokens.readNumbers())).toEqual(counts)
    const idOf = (expert: number, row: number): number => (row < counts[expert]! ? expert : -1)
    const expected = [...counts].flatMap((count, expert) =>
      Array.from({ length: Math.ceil(count / 4) * 4 }, (_, row) => idOf(expert, row)),
    )
    expect(Array.from(await out.expertIds.readNumbers())).toEqual(expected)
  })

  test('permute names the first expert that has more slots than its count', async () => {
    const several = [...counts.keys()].filter((expert) => counts[expert]! > 0 && expert > numLocalExperts / 3)
    const given = counts.slice()
    for (const expert of several.slice(0, 9)) given[expert]!--
    const [expert] = several as [number]
    const out = { expertIds: marked(needed), inversePermutation: marked(tokens, topk) }
    permute(x, { ...base, expertNumTokens: Tensor.from([...given], [numLocalExperts], 'i32'), out })
    const message = expect.stringContaining(`expert ${expert}`)
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message })
    for (const tensor of Object.values(out)) await untouched(tensor)
  })

  test('permuteMasked gives the count of the fullest expert, and writes nothing', async () => {
    const fullest = counts[numLocalExperts - 2]!
    const maxTokens = fullest - 1
    const out = { maskedM: marked(numLocalExperts), inversePermutation: marked(tokens, topk) }
    permuteMasked(Tensor.zeros([tokens, 1], 'u8'), { topkIdx, numLocalExperts, maxTokens, out })
    const message = expect.stringContaining(
      `every expert has ${maxTokens} rows, but ${fullest} are needed for local expert ${numLocalExperts - 2}`,
    )
    expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_CAPACITY', message })
    for (const tensor of Object.values(out)) await untouched(tensor)
  })

  test('the first id that is no expert is named, and nothing is written', async () => {
    const bad = ids.slice()
    for (const slot of [2877, 1233, 2001]) bad[slot] = numLocalExperts + slot
    const topkIdx = Tensor.from(bad, [tokens, topk], 'i32')
    const message = expect.stringContaining(`received ${numLocalExperts + 1233} for token 616, slot 1`)
    const out = marked(numLocalExperts)
    const calls = [
      (): unknown => countExpertNumTokens(topkIdx, { numLocalExperts }),
      (): unknown => permute(x, { ...base, topkIdx, out: { expertEnd: out } }),
      (): unknown => moePermute(x, { topkIdx, numLocalExperts }),
    ]
    for (const call of calls) {
      call()
      expect(await failure()).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', message })
    }
    await untouched(out)
  })
})
