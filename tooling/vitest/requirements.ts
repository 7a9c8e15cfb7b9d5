import { appendFileSync } from 'node:fs'
import { test } from 'vitest'

/** Says whether something is there: `true`, or in a few words why not (`'no /dev/kvm'`). Throwing means no, too. */
export type Probe = () => true | string

const answers = new Map<string, boolean>()

function reasonOfAbsence(probe: Probe): string | undefined {
  try {
    const answer = probe()
    return answer === true ? undefined : answer || 'no reason given'
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
}

/** Whether `name` is in MOE_EP_REQUIRE, the comma-separated list of what this machine must have. */
function isDemanded(name: string): boolean {
  const demanded = (process.env.MOE_EP_REQUIRE ?? '').split(',').map((entry) => entry.trim())
  return demanded.includes(name)
}

/**
 * Whether something that a suite needs is on this machine: `describe.skipIf(!requires('chromium', probeChromium))`.
 *
 * Call it while tests are collected, not inside of one. The first call for a name in a file runs the probe. What is
 * missing is listed with its reason at the end of the run, and fails the run when MOE_EP_REQUIRE names it.
 *
 * @param name Short name of what is needed: `chromium`, `cuda`, `shm64`, ...
 * @param probe Looks for it, without leaving anything behind.
 */
export function requires(name: string, probe: Probe): boolean {
  const known = answers.get(name)
  if (known !== undefined) return known

  const reason = reasonOfAbsence(probe)
  const available = reason === undefined
  answers.set(name, available)
  if (!available) {
    // The reporter lives in another process and reads this file at the end (closing-line.mjs).
    const log = process.env.MOE_EP_MISSING_LOG
    if (log) appendFileSync(log, `${JSON.stringify({ name, reason })}\n`)
    if (isDemanded(name)) {
      test(`MOE_EP_REQUIRE: ${name} is there`, () => {
        throw new Error(`${name} is missing: ${reason}`)
      })
    }
  }
  return available
}
