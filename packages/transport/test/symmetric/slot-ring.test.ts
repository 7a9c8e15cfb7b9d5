import { Event, getDevice } from '@moe-ep/core'
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { type Lease, SlotRing } from '../../src/index.js'
import { thrownBy } from './world.js'

type Step =
  | { readonly take: true; readonly slot: number | undefined }
  | { readonly take: false; readonly index: number }

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    fc.record({ take: fc.constant(true as const), slot: fc.option(fc.nat(4), { nil: undefined }) }),
    fc.record({ take: fc.constant(false as const), index: fc.nat(100) }),
  ),
  { maxLength: 60 },
)

test('two rings that see the same program hand out the same slots; no slot is leased twice', () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5 }), steps, (maxInFlight, program) => {
      const play = (): string[] => {
        const ring = new SlotRing(maxInFlight)
        const leases: Lease[] = []
        return program.map((step) => {
          const active = leases.filter((lease) => lease.active)
          expect(new Set(active.map((lease) => lease.slot)).size).toBe(active.length)
          expect(ring.free).toBe(maxInFlight - active.length)
          if (!step.take) {
            leases[step.index % Math.max(1, leases.length)]?.release()
            return 'release'
          }
          const taken = active.map((lease) => lease.slot)
          const lowest = Array.from({ length: maxInFlight }, (_, slot) => slot).find((slot) => !taken.includes(slot))
          const wanted = step.slot ?? lowest
          if (wanted === undefined || taken.includes(wanted) || wanted >= maxInFlight) {
            return thrownBy(() => ring.acquire(step.slot)).code
          }
          const lease = ring.acquire(step.slot)
          expect(lease).toMatchObject({ slot: wanted, id: leases.length, active: true })
          leases.push(lease)
          return `slot ${lease.slot}`
        })
      }
      expect(play()).toEqual(play())
    }),
  )
})

test('says which of the two it is: a slot in flight, or none at all', () => {
  const ring = new SlotRing(2)
  ring.acquire(1)
  expect(thrownBy(() => ring.acquire(1))).toMatchObject({
    code: 'ERR_MOE_EP_NO_FREE_SLOT',
    message: 'slot 1 is in flight',
  })
  ring.acquire()
  expect(thrownBy(() => ring.acquire())).toMatchObject({
    code: 'ERR_MOE_EP_NO_FREE_SLOT',
    message: expect.stringContaining('all 2 slots are in flight'),
  })
})

test('releasing twice frees nothing that a later lease holds', () => {
  const ring = new SlotRing(1)
  const first = ring.acquire()
  first.release()
  const second = ring.acquire()
  first.release()
  expect([first.active, second.active, ring.free]).toEqual([false, true, 0])
})

test.each([-1, 2, 0.5, Number.NaN])('refuses the slot %s', (slot) => {
  expect(thrownBy(() => new SlotRing(2).acquire(slot)).code).toBe('ERR_MOE_EP_ARGUMENT')
})

test.each([0, 65, 1.5])('refuses %s slots', (maxInFlight) => {
  expect(thrownBy(() => new SlotRing(maxInFlight)).code).toBe('ERR_MOE_EP_ARGUMENT')
})

test('the next user of a slot waits for what was said at the release, else for what was said before', () => {
  const ring = new SlotRing(1)
  const [filled, combined] = [new Event(getDevice('cpu')), new Event(getDevice('cpu'))]
  const first = ring.acquire()
  first.useUntil(filled)
  first.release()
  const second = ring.acquire()
  expect(second.previous).toBe(filled)
  second.useUntil(filled)
  second.release(combined)
  const third = ring.acquire()
  expect(third.previous).toBe(combined)
  third.release()
  expect(ring.acquire().previous).toBe(combined)
})
