import type { ErrorCode } from '@moe-ep/core'
import { expect } from 'vitest'
import { codesOf, failureOf, type Rank } from './world.js'

/** Deadline of worlds in which nobody may have to wait for it: a rank that did would end as a test that takes too long. */
export const never = 3_600_000

/** What must become of a call that is wrong on one rank. */
export interface Refused {
  readonly wrong: number
  readonly code: ErrorCode
  /** Part of the message that the wrong rank's own error has. */
  readonly text: string
}

/**
 * Makes a call on all ranks at once. The wrong one gets its own error; the others the same code, its name and its words; and
 * all have as many free slots as before and a buffer that works on.
 */
export async function expectRefused(
  ranks: readonly Rank[],
  { wrong, code, text }: Refused,
  call: (rank: Rank, isWrong: boolean) => Promise<unknown>,
): Promise<void> {
  const errors = await Promise.all(ranks.map((rank) => failureOf(call(rank, rank.rank === wrong))))
  expect([text, ...codesOf(errors)]).toEqual([text, ...ranks.map(() => code)])
  const own = errors[wrong]!.message
  expect(own).toContain(text)
  expect(own).not.toContain('refused by')
  for (const { message } of errors.filter((_, rank) => rank !== wrong))
    expect(message).toMatch(/^intranode (dispatch|combine): refused by rank \d: /)
  for (const { message } of errors.filter((_, rank) => rank !== wrong))
    expect(message).toContain(`refused by rank ${wrong}: ${own}`)
  expect(ranks.map(({ buffer }) => buffer.failure)).toEqual(ranks.map(() => undefined))
}

/** What an enqueued call fails with: at once, or at its event. The stream is in order again afterwards. */
export async function enqueued(
  { stream }: Rank,
  call: () => { readonly event: { synchronize(): Promise<void> } },
): Promise<void> {
  const { event } = call()
  try {
    await event.synchronize()
  } finally {
    await stream.synchronize().catch(() => {})
  }
}
