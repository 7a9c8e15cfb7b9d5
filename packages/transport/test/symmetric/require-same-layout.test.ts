import { afterEach, beforeEach, expect, test } from 'vitest'
import { type ProcessGroup, requireSameLayout } from '../../src/index.js'
import { closeWorld, failureOf, openWorld } from './world.js'

let groups: ProcessGroup[]
beforeEach(async () => {
  groups = await openWorld(3)
})
afterEach(() => closeWorld(groups))

/** What all ranks are told, who say these things. */
function compare(versions: readonly string[], fields: readonly (readonly number[])[]): Promise<void>[] {
  return groups.map((group, rank) =>
    requireSameLayout(group, fields[rank]!, { label: 'shelf', version: versions[rank]! }),
  )
}
const same = <T>(value: T): T[] => [value, value, value]

test('passes ranks that say the same', async () => {
  await expect(Promise.all(compare(same('1.2.3'), same([1, 2 ** 40, 3])))).resolves.toHaveLength(3)
  await expect(Promise.all(compare(same('1.2.3'), same([])))).resolves.toHaveLength(3)
})

test.each([
  [
    'another number',
    [
      [1, 2],
      [1, 2],
      [1, 3],
    ],
    2,
  ],
  ['a number more', [[1], [1, 2], [1]], 1],
  [
    'the same digits, cut elsewhere',
    [
      [12, 3],
      [1, 23],
      [12, 3],
    ],
    1,
  ],
])('refuses %s on all ranks alike', async (_, fields, rank) => {
  for (const call of compare(same('1.2.3'), fields))
    expect(await failureOf(call)).toMatchObject({
      code: 'ERR_MOE_EP_MISMATCH',
      message: `shelf: rank ${rank} was built with other sizes than rank 0`,
    })
})

test('refuses another version first, and names both', async () => {
  for (const call of compare(['1.2.3', '1.2.3', '1.3.0'], [[1], [2], [1]]))
    expect(await failureOf(call)).toMatchObject({
      code: 'ERR_MOE_EP_MISMATCH',
      message: 'shelf: rank 2 runs version 1.3.0 of its code, rank 0 version 1.2.3',
    })
})
