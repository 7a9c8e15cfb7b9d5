import { randomBytes } from 'node:crypto'
import { closeSync, ftruncateSync, openSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { getDevice } from '@moe-ep/core'
import type { ProcessGroup } from '../../src/index.js'
import { afterEach, describe, expect, test } from 'vitest'
import { SymmetricMemory } from '../../src/index.js'
import { native } from '../../src/native.js'
import { encodeWish, wishOf } from '../../src/symmetric/agreement.js'
import {
  closeWorld,
  countDescriptors,
  countMappings,
  descriptorSockets,
  eventually,
  failureOf,
  noSocketStays,
  openWorld,
} from './world.js'

// Rank 1 plays the cpu's protocol by hand, and wrongly, against a real rank 0. It begins alike on all devices.

const device = getDevice('cpu')
const byteLength = 64
const label = 'symmetric memory'
let groups: ProcessGroup[] = []

afterEach(async () => {
  await closeWorld(groups)
  await noSocketStays()
  expect(countMappings()).toBe(0)
})

/** Descriptor of a file of zeros that has no name any more. */
function temporaryFile(size: number): number {
  const path = join(tmpdir(), `moe-ep-test-${randomBytes(8).toString('hex')}`)
  const file = openSync(path, 'w+')
  ftruncateSync(file, size)
  rmSync(path)
  return file
}

interface Fake {
  readonly group: ProcessGroup
  readonly name: string
  readonly token: string
  readonly socket: number
}

/** Runs the steps of `create` up to the exchange of descriptors and hands over to `play`. */
async function meetFake(
  options: { readonly timeoutMs?: number; readonly signal?: AbortSignal },
  play: (fake: Fake, real: { name: string; token: string }) => Promise<void> | void,
  say: (fake: Fake) => string = ({ name, token }) => `${name} ${token}`,
): Promise<{ error: Error & { code: string }; told: Error & { code: string } }> {
  groups = await openWorld(2)
  const before = countDescriptors()
  const group = groups[1]!
  const failure = failureOf(SymmetricMemory.create(groups[0]!, { device, byteLength, ...options }))
  await group.allGather(encodeWish(wishOf(device, { byteLength, numSignals: 0 }, 'auto')), { label })
  await group.allGather(new Uint8Array(0), { label })
  const name = `moe-ep-${randomBytes(16).toString('hex')}`
  const fake = { group, name, token: randomBytes(32).toString('hex'), socket: native().openDescriptorSocket(name) }
  expect(descriptorSockets()).toContain(`@${name}`)
  const [invitation] = await group.allGather(Buffer.from(say(fake)), { label })
  const [realName, realToken] = Buffer.from(invitation!).toString().split(' ') as [string, string]
  await play(fake, { name: realName, token: realToken })
  // What the real rank says of its failure ends this rank's next collective.
  const told = await failureOf(group.barrier({ label }))
  const error = await failure
  native().closeDescriptor(fake.socket)
  await eventually(() => countDescriptors() <= before, 'descriptors are closed')
  return { error, told }
}

describe('a failing set-up', () => {
  test('when a rank sends no descriptor: names the rank at the deadline, and tells it', async () => {
    const { error, told } = await meetFake({ timeoutMs: 300 }, () => {})
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', message: expect.stringContaining('from rank 1') })
    expect(told.code).toBe('ERR_MOE_EP_TIMEOUT')
  })

  test('when it is aborted: the other rank hears it at once', async () => {
    const abort = new AbortController()
    const { error, told } = await meetFake({ timeoutMs: 60_000, signal: abort.signal }, () => abort.abort('enough'))
    expect([error.code, told.code]).toEqual(['ERR_MOE_EP_ABORTED', 'ERR_MOE_EP_ABORTED'])
  })

  test('when a rank does not listen', async () => {
    const { error, told } = await meetFake(
      {},
      ({ socket }) => native().closeDescriptor(socket),
      ({ token }) => `moe-ep-${'0'.repeat(32)} ${token}`,
    )
    expect([error.code, told.code]).toEqual(['ERR_MOE_EP_CONNECT', 'ERR_MOE_EP_CONNECT'])
  })

  test.each(['', '{}', `moe-ep-x ${'0'.repeat(64)}`, `moe-ep-${'0'.repeat(32)} short`, 'x'.repeat(10_000)])(
    'when a rank sends a malformed invitation',
    async (text) => {
      const { error, told } = await meetFake(
        {},
        () => {},
        () => text,
      )
      expect(error).toMatchObject({ code: 'ERR_MOE_EP_PROTOCOL', message: expect.stringContaining('rank 1') })
      expect(told.code).toBe('ERR_MOE_EP_PROTOCOL')
    },
  )

  test('strangers, wrong tokens and datagrams without a descriptor are passed over, and nothing of them stays', async () => {
    const { error } = await meetFake({ timeoutMs: 300 }, ({ socket }, { name, token }) => {
      const file = temporaryFile(8192)
      const wrong = `${'0'.repeat(64)}:1`
      for (const payload of [
        wrong,
        '',
        `${token}:0`,
        `${token}:7`,
        `${token}:x`,
        `${token}`,
        `${token}:${'9'.repeat(99)}`,
      ]) {
        native().sendDescriptor(socket, name, file, Buffer.from(payload))
      }
      closeSync(file)
    })
    expect(error).toMatchObject({ code: 'ERR_MOE_EP_TIMEOUT', message: expect.stringContaining('from rank 1') })
  })

  test('when the descriptor is of something else', async () => {
    for (const size of [0, 4096, 8192]) {
      const { error } = await meetFake({}, async ({ socket }, { name, token }) => {
        const file = temporaryFile(size)
        await eventually(() => native().sendDescriptor(socket, name, file, Buffer.from(`${token}:1`)), 'the send')
        closeSync(file)
      })
      // 4096 bytes of control block and 4096 of payload: only the right size gets as far as the look at its head.
      expect([size, error.code]).toEqual([size, size === 8192 ? 'ERR_MOE_EP_PROTOCOL' : 'ERR_MOE_EP_CONNECT'])
      await closeWorld(groups)
    }
  })
})
