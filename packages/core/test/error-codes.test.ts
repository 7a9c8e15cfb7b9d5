import { readFileSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { argumentError, errorCodes, MoeEpError } from '../src/index.js'

test('docs/errors.md lists every code with its meaning, in the same order, and no other', () => {
  const page = readFileSync(new URL('../../../docs/errors.md', import.meta.url), 'utf8')
  const rows = [...page.matchAll(/^\| `(ERR_MOE_EP_\w+)` \| (.+) \|$/gm)].map(([, code, meaning]) => [code, meaning])
  expect(rows).toEqual(Object.entries(errorCodes))
})

describe('MoeEpError', () => {
  test('carries code, details and cause, and prints them', () => {
    const cause = new Error('below')
    const error = new MoeEpError('ERR_MOE_EP_TIMEOUT', 'too late', { cause, details: { rank: 3 } })
    expect(error).toMatchObject({
      name: 'MoeEpError',
      code: 'ERR_MOE_EP_TIMEOUT',
      message: 'too late',
      cause,
      details: { rank: 3 },
    })
    expect(JSON.parse(JSON.stringify(error))).toEqual({
      ...{ name: 'MoeEpError', code: 'ERR_MOE_EP_TIMEOUT', message: 'too late', details: { rank: 3 } },
    })
    expect(MoeEpError.isInstance(error)).toBe(true)
    expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_TIMEOUT')).toBe(true)
    expect(MoeEpError.isInstance(error, 'ERR_MOE_EP_ABORTED')).toBe(false)
    expect(
      [new Error('ERR_MOE_EP_TIMEOUT'), { code: 'ERR_MOE_EP_TIMEOUT' }, null, 'text'].map((other) =>
        MoeEpError.isInstance(other),
      ),
    ).toEqual([...[false, false, false, false]])
  })

  test('from keeps our own codes and gives others the fallback', () => {
    const ours = new MoeEpError('ERR_MOE_EP_CAPACITY', 'full')
    expect(MoeEpError.from(ours)).toBe(ours)
    const native = Object.assign(new Error('from an addon'), { code: 'ERR_MOE_EP_PEER_LOST' })
    expect(MoeEpError.from(native)).toMatchObject({
      code: 'ERR_MOE_EP_PEER_LOST',
      message: 'from an addon',
      cause: native,
    })
    const system = Object.assign(new Error('no entry'), { code: 'ENOENT' })
    expect(MoeEpError.from(system)).toMatchObject({ code: 'ERR_MOE_EP_INTERNAL', cause: system })
    expect(MoeEpError.from(system, 'ERR_MOE_EP_CONFIG').code).toBe('ERR_MOE_EP_CONFIG')
    // A name that every object has is no code.
    expect(MoeEpError.from(Object.assign(new Error('x'), { code: 'toString' })).code).toBe('ERR_MOE_EP_INTERNAL')
    expect(MoeEpError.from('just text')).toMatchObject({ message: 'just text', cause: 'just text' })
    expect(MoeEpError.from(undefined)).toMatchObject({ code: 'ERR_MOE_EP_INTERNAL', message: 'undefined' })
  })

  test.each<[unknown, string]>([
    ['text', '"text"'],
    [3n, '3n'],
    [[1, 'a', [2]], '[1, "a", [2]]'],
    [Array.from({ length: 20 }, (_, i) => i), '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, ...]'],
    [new Uint8Array(1), 'Uint8Array'],
    [Object.create(null), 'object'],
    [undefined, 'undefined'],
    [NaN, 'NaN'],
  ])('argument errors describe what came: %#', (value, description) => {
    const error = argumentError('x', 'something else', value)
    expect(error.message).toBe(`x: expected something else, received ${description}`)
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_ARGUMENT', details: { argument: 'x' } })
  })
})
