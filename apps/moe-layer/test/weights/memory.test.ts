import { mkdir, writeFile } from 'node:fs/promises'
import { freemem } from 'node:os'
import { describe, expect, it } from 'vitest'
import { modelPresets } from '../../src/presets/presets.js'
import { availableMemory } from '../../src/weights/available-memory.js'
import { diskSpaceFor, requireDiskSpace } from '../../src/weights/disk-space.js'
import { makeWeights } from '../../src/weights/make-weights.js'
import { memoryNeed, requireMemory } from '../../src/weights/memory-need.js'
import { useTemporaryFolder } from '../temporary-folder.js'

const pathOf = useTemporaryFolder()
const GiB = 2 ** 30

const needOf = (model: string, ranks: number, tokens = 128) => {
  const { shape, sharedExperts } = modelPresets.get(model)!
  return memoryNeed({
    ...{ shape, sharedIntermediate: sharedExperts * shape.intermediate, tokens: new Array<number>(ranks).fill(tokens) },
    ...{ bufferBytesPerRank: 10 * 2 ** 20, fileBytes: 0 },
  })
}

describe('memoryNeed', () => {
  it('counts each expert once and gate and shared expert on every rank, as f32', () => {
    const shape = { hidden: 10, intermediate: 20, experts: 6, topk: 2 }
    const need = memoryNeed({ shape, sharedIntermediate: 30, tokens: [1, 0, 5], bufferBytesPerRank: 7, fileBytes: 11 })
    expect(need.weights).toBe(4 * (6 * 3 * 200 + 3 * (6 * 10 + 3 * 300)))
    expect(need.buffers).toBe(21)
    expect(need.file).toBe(11)
    const { total, ...parts } = need
    expect(total).toBe(Object.values(parts).reduce((sum, bytes) => sum + bytes, 0))
  })

  it.each([2, 3, 8])('lets qwen3-30b-a3b run in 24 GiB with %d ranks', (ranks) => {
    const need = needOf('qwen3-30b-a3b', ranks)
    expect(need.weights / GiB).toBeCloseTo(2.25, 1)
    expect(need.total).toBeLessThan(5 * GiB)
  })

  it.each([
    ['deepseek-v3', 42],
    ['kimi-k2', 63],
  ])('knows that %s does not fit in 24 GiB', (model, gib) => {
    const need = needOf(model, 8)
    expect(need.weights).toBeGreaterThan(gib * GiB)
    expect(() => requireMemory(model, need, 24 * GiB)).toThrow(
      expect.objectContaining({
        code: 'ERR_MOE_EP_OUT_OF_MEMORY',
        message: expect.stringMatching(
          `${model} needs .* \\(${need.total} bytes\\) .*${24 * GiB} bytes.* weights .*${need.weights} bytes`,
        ),
        details: { neededBytes: need.total, availableBytes: 24 * GiB },
      }),
    )
  })

  it('allows what just fits', () => {
    const need = needOf('demo', 2)
    expect(() => requireMemory('demo', need, need.total)).not.toThrow()
    expect(() => requireMemory('demo', need, need.total - 1)).toThrow()
  })
})

describe('availableMemory', () => {
  const group = async (path: string, files: Record<string, string>): Promise<void> => {
    await mkdir(pathOf(path), { recursive: true })
    for (const [name, text] of Object.entries(files)) await writeFile(pathOf(`${path}/${name}`), text)
  }
  const available = async (membership: string, groups: string): Promise<number> => {
    await writeFile(pathOf('membership'), membership)
    return availableMemory({ machineBytes: 1000, membership: pathOf('membership'), groups: pathOf(groups) })
  }

  it('is what the machine has left where no group limits it', async () => {
    await group('free/inner', { 'memory.max': 'max\n', 'memory.current': '5\n' })
    expect(await available('0::/inner\n', 'free')).toBe(1000)
    expect(await available('', 'nowhere')).toBe(1000)
    expect(await availableMemory()).toBeLessThanOrEqual(freemem() * 1.1)
  })

  it('is the least that a group or one around it leaves, cached files being free', async () => {
    const statistics = 'anon 300\nfile 150\ninactive_file 60\nactive_file 40\n'
    await group('tree', { 'memory.max': '900\n', 'memory.current': '500\n', 'memory.stat': statistics })
    await group('tree/a', { 'memory.max': 'max\n' })
    await group('tree/a/b', { 'memory.max': '400\n', 'memory.current': '100\n', 'memory.stat': '' })
    expect(await available('1:cpu:/x\n0::/a/b\n', 'tree')).toBe(300)
    expect(await available('0::/a\n', 'tree')).toBe(500)
    expect(await available('0::/../outside\n', 'tree')).toBe(500)
  })

  it('is never below zero', async () => {
    await group('full', { 'memory.max': '100\n', 'memory.current': '300\n' })
    expect(await available('0::/\n', 'full')).toBe(0)
  })
})

describe('requireDiskSpace', () => {
  it('refuses more than is free, naming both numbers', async () => {
    const { freeBytes } = (await diskSpaceFor(pathOf('x')))!
    expect(freeBytes).toBeGreaterThan(0)
    await expect(requireDiskSpace(pathOf('x'), 1)).resolves.toBeUndefined()
    await expect(requireDiskSpace(pathOf('x'), 2 ** 60)).rejects.toMatchObject({
      code: 'ERR_MOE_EP_OUT_OF_MEMORY',
      message: expect.stringContaining(`${2 ** 60} bytes`),
      details: { neededBytes: 2 ** 60 },
    })
  })

  it('keeps makeWeights from starting a file that has no room', async () => {
    const sizes = { hidden: 2 ** 20, intermediate: 2 ** 20, experts: 64, seed: 1, dtype: 'bf16' } as const
    const seen: unknown[] = []
    const making = makeWeights({ ...sizes, path: pathOf('huge'), onProgress: (progress) => seen.push(progress) })
    await expect(making).rejects.toMatchObject({ code: 'ERR_MOE_EP_OUT_OF_MEMORY' })
    expect(seen).toEqual([])
  })

  it('leaves a missing folder to the writer', async () => {
    expect(await diskSpaceFor(pathOf('no/where'))).toBeUndefined()
    await expect(requireDiskSpace(pathOf('no/where'), 1)).resolves.toBeUndefined()
  })
})
