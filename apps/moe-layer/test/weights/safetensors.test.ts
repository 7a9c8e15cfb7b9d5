import { open, readFile, readdir, truncate, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { f32ToBf16Array } from '@moe-ep/core'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { openSafetensors } from '../../src/weights/safetensors-reader.js'
import { type TensorSource, writeSafetensors } from '../../src/weights/safetensors-writer.js'
import { useTemporaryFolder } from '../temporary-folder.js'
import { fileOf, hostileFiles } from './hostile-files.js'

const pathOf = useTemporaryFolder()

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView) => new Uint8Array(buffer, byteOffset, byteLength)

const source = (name: string, values: Float32Array | Uint16Array, shape = [values.length]): TensorSource => ({
  name,
  dtype: values instanceof Float32Array ? 'F32' : 'BF16',
  shape,
  data: () => bytesOf(values),
})

describe('openSafetensors', () => {
  it.each(hostileFiles)('refuses %s', async (_title, bytes, message) => {
    const path = pathOf('hostile.safetensors')
    await writeFile(path, bytes)
    await expect(openSafetensors(path)).rejects.toMatchObject({
      code: 'ERR_MOE_EP_FILE_FORMAT',
      message: expect.stringContaining(message),
    })
  })

  it('names the file in its errors and keeps quotations of hostile text short', async () => {
    const path = pathOf('long.safetensors')
    await writeFile(path, fileOf({ ['n'.repeat(100_000)]: 1 }, 0))
    const error = await openSafetensors(path).catch((reason: Error) => reason)
    expect(error).toMatchObject({ message: expect.stringContaining(path), details: { path } })
    expect((error as Error).message.length).toBeLessThan(path.length + 200)
  })

  it('survives a header that is one string of many megabytes', async () => {
    const path = pathOf('huge.safetensors')
    await writeFile(path, fileOf(`{"${'\\\\'.repeat(10_000_000)}":1}`, 0))
    await expect(openSafetensors(path)).rejects.toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
  })

  it('refuses a file that is not there and one that is a folder', async () => {
    await expect(openSafetensors(pathOf('absent'))).rejects.toMatchObject({
      code: 'ERR_MOE_EP_CONFIG',
      message: expect.stringContaining('absent'),
    })
    await expect(openSafetensors(dirname(pathOf('x')))).rejects.toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
  })

  it('reads a file as others write it: padded, without metadata, names in any order', async () => {
    const path = pathOf('foreign.safetensors')
    const header =
      '{"b":{"dtype":"U8","shape":[],"data_offsets":[2,3]},"a":{"data_offsets":[0,2],"shape":[1,2],"dtype":"I8"}}   '
    const bytes = fileOf(header, 3)
    bytes.set([1, 2, 3], bytes.length - 3)
    await writeFile(path, bytes)
    await using file = await openSafetensors(path)
    expect(file.metadata).toEqual({})
    expect(await file.read('a')).toMatchObject({ dtype: 'I8', shape: [1, 2], bytes: Uint8Array.of(1, 2) })
    expect(await file.read('b')).toMatchObject({ dtype: 'U8', shape: [], bytes: Uint8Array.of(3) })
  })

  it('reads beyond 2^32 bytes, and only what is asked for', async () => {
    const path = pathOf('sparse.safetensors')
    const far = 5 * 2 ** 30
    const bytes = fileOf(
      {
        big: { dtype: 'U8', shape: [5, 2 ** 30], data_offsets: [0, far] },
        last: { dtype: 'U8', shape: [2], data_offsets: [far, far + 2] },
      },
      0,
    )
    await writeFile(path, bytes)
    // The big tensor is a hole in the file: it takes no disk.
    const handle = await open(path, 'r+')
    await handle.write(Uint8Array.of(8, 9), 0, 2, bytes.length + far)
    await handle.close()
    await using file = await openSafetensors(path)
    expect(file.tensors.get('big')!.byteLength).toBe(far)
    expect((await file.read('last')).bytes).toEqual(Uint8Array.of(8, 9))
  })

  it('notices that the file has shrunk since it was opened', async () => {
    const path = pathOf('shrunk.safetensors')
    await writeSafetensors({ path, tensors: [source('a', new Float32Array(100))] })
    await using file = await openSafetensors(path)
    await truncate(path, 200)
    await expect(file.read('a')).rejects.toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
  })

  it('refuses an unknown name, reading after close, widening of integers, and an aborted read', async () => {
    const path = pathOf('small.safetensors')
    await writeFile(path, fileOf({ a: { dtype: 'I32', shape: [1], data_offsets: [0, 4] } }, 4))
    const file = await openSafetensors(path)
    await expect(file.read('b')).rejects.toMatchObject({
      code: 'ERR_MOE_EP_FILE_FORMAT',
      message: expect.stringContaining('"b"'),
    })
    await expect(file.readFloat32('a')).rejects.toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
    await expect(file.readFloat32('toString')).rejects.toMatchObject({ code: 'ERR_MOE_EP_FILE_FORMAT' })
    await expect(file.read('a', { signal: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ERR_MOE_EP_ABORTED' })
    await file.close()
    await file.close()
    await expect(file.read('a')).rejects.toMatchObject({ code: 'ERR_MOE_EP_RELEASED' })
  })

  it('widens F32, BF16 and F16', async () => {
    const path = pathOf('floats.safetensors')
    const values = Float32Array.of(1, -2.5, 0, Infinity)
    const f16 = Uint16Array.of(0x3c00, 0xc100, 0, 0x7c00)
    await writeSafetensors({
      path,
      tensors: [source('f32', values), source('bf16', f32ToBf16Array(values)), { ...source('f16', f16), dtype: 'F16' }],
    })
    await using file = await openSafetensors(path)
    for (const name of ['f32', 'bf16', 'f16']) expect(await file.readFloat32(name)).toEqual(values)
  })
})

describe('writeSafetensors', () => {
  it('writes what the reader reads back, for any names, shapes and values', async () => {
    const path = pathOf('round-trip.safetensors')
    const tensor = fc.record({
      name: fc.oneof(
        fc.string(),
        fc.string({ unit: 'binary' }),
        fc.constantFrom('__proto__', '1', '0', 'constructor', '"'),
      ),
      shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
      fill: fc.integer({ min: 0, max: 255 }),
    })
    const tensors = fc.uniqueArray(tensor, { selector: ({ name }) => name, maxLength: 6 })
    await fc.assert(
      fc.asyncProperty(tensors, fc.dictionary(fc.string(), fc.string()), async (specs, metadata) => {
        const data = specs.map(({ shape, fill }) => new Uint8Array(shape.reduce((a, b) => a * b, 2)).fill(fill))
        await writeSafetensors({
          path,
          tensors: specs.map(({ name, shape }, i) => ({ name, dtype: 'F16', shape, data: () => [data[i]!] })),
          metadata,
        })
        await using file = await openSafetensors(path)
        expect([...file.tensors.keys()].sort()).toEqual(specs.map(({ name }) => name).sort())
        expect(Object.entries(file.metadata).sort()).toEqual(Object.entries(metadata).sort())
        for (const [i, { name, shape }] of specs.entries()) {
          expect(await file.read(name)).toEqual({ dtype: 'F16', shape, bytes: data[i] })
        }
      }),
      { numRuns: 60 },
    )
  })

  it('starts the data at a multiple of 8 bytes', async () => {
    for (let length = 1; length <= 9; length++) {
      const path = pathOf('aligned.safetensors')
      await writeSafetensors({ path, tensors: [source('x'.repeat(length), Float32Array.of(1))] })
      const bytes = await readFile(path)
      expect((8 + Number(bytes.readBigUInt64LE())) % 8).toBe(0)
      expect(bytes.length - 8 - Number(bytes.readBigUInt64LE())).toBe(4)
    }
  })

  it('makes each tensor only when its turn comes, in pieces, and tells how far it is', async () => {
    const path = pathOf('lazy.safetensors')
    const events: string[] = []
    const piece = new Uint8Array(4)
    const lazy = (name: string): TensorSource => ({
      name,
      dtype: 'F32',
      shape: [2],
      async *data() {
        for (const value of [1, 2]) {
          events.push(`${name}${value}`)
          yield piece.fill(value)
        }
      },
    })
    const onProgress = ({ done, total }: { done: number; total: number }) => events.push(`${done}/${total}`)
    await writeSafetensors({ path, tensors: [lazy('a'), lazy('b')], onProgress })
    expect(events).toEqual(['0/16', 'a1', '4/16', 'a2', '8/16', 'b1', '12/16', 'b2', '16/16'])
    await using file = await openSafetensors(path)
    expect((await file.read('b')).bytes).toEqual(Uint8Array.of(1, 1, 1, 1, 2, 2, 2, 2))
  })

  const sized = (bytes: number): TensorSource => ({
    name: 'a',
    dtype: 'F32',
    shape: [2],
    data: () => new Uint8Array(bytes),
  })
  it.each<[string, TensorSource[]]>([
    ['too few bytes', [sized(7)]],
    ['too many bytes', [sized(9)]],
    ['a name twice', [sized(8), sized(8)]],
    ['the name of the metadata', [{ ...sized(8), name: '__metadata__' }]],
    ['an unknown dtype', [{ ...sized(8), dtype: 'F31' as 'F32' }]],
    ['a negative size', [{ ...sized(8), shape: [-2] }]],
    ['too many elements', [{ ...sized(8), shape: [2 ** 40, 2 ** 40] }]],
  ])('refuses %s and leaves nothing behind', async (_title, tensors) => {
    const path = pathOf('refused.safetensors')
    await expect(writeSafetensors({ path, tensors })).rejects.toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT' })
    expect((await readdir(dirname(path))).filter((name) => name.startsWith('refused'))).toEqual([])
  })

  it('keeps the old file when it fails, is aborted or a source throws', async () => {
    const path = pathOf('kept.safetensors')
    await writeSafetensors({ path, tensors: [source('old', Float32Array.of(1))] })
    const before = await readFile(path)
    const controller = new AbortController()
    const abortedInside: TensorSource = {
      ...sized(8),
      *data() {
        yield new Uint8Array(4)
        controller.abort()
        yield new Uint8Array(4)
      },
    }
    const { signal } = controller
    await expect(writeSafetensors({ path, tensors: [abortedInside], signal })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_ABORTED',
    })
    const throwing = {
      ...sized(8),
      data: () => {
        throw new RangeError('of the source')
      },
    }
    await expect(writeSafetensors({ path, tensors: [throwing] })).rejects.toThrow('of the source')
    expect(await readFile(path)).toEqual(before)
    expect((await readdir(dirname(path))).filter((name) => name.startsWith('kept'))).toEqual(['kept.safetensors'])
  })

  it('says that a path cannot be written', async () => {
    await expect(writeSafetensors({ path: pathOf('no/such/folder'), tensors: [] })).rejects.toMatchObject({
      code: 'ERR_MOE_EP_CONFIG',
    })
  })
})
