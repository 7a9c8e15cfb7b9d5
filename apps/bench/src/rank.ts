import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { CudaDevice, MoeEpError } from '@moe-ep/core'
import { connect, type ProcessGroup } from '@moe-ep/transport'
import { isBetweenRanks, type OperationName } from './command/operation-names.js'
import { measureCases } from './measure/measure-cases.js'
import { mostSets } from './measure/rotation.js'
import { Scope } from './measure/scope.js'
import { operations } from './operations/index.js'
import type { BenchContext } from './operations/operation.js'
import { createStopwatches, deviceOfRank } from './rank-device.js'
import { summarizeOperation } from './results/bench-result.js'
import { progressLine } from './results/terminal-table.js'
import type { RankFailure, RankMeasurement, RankSuccess } from './results/rank-measurement.js'
import { type RunSpec, runSpecVariable } from './run-spec.js'
import { awaitFills } from './workload/device-words.js'
import { Routing } from './workload/routing.js'

async function measureOperation(context: BenchContext, name: OperationName): Promise<RankMeasurement> {
  const { options, group, device } = context
  // On cuda what one rank does concerns nobody else.
  const together = device.kind === 'cpu' || isBetweenRanks(name)
  const scope = new Scope(device)
  try {
    const { subject, ceilings, floor, check, block = 1, rule, ...bytes } = await operations[name](context, scope)
    const { iters } = options
    // Sets follow from bytes, which differ between ranks; iterations that are made together must be as many on all of them.
    const warmup = device.kind === 'cpu' ? Math.max(options.warmup, mostSets) : options.warmup
    const cases = [subject, ...ceilings, ...(floor === undefined ? [] : [floor])]
    await awaitFills(device)
    const [samples = [], ...others] = await measureCases(cases, { iters, warmup, block })
    // Nobody takes memory away that another rank still works with.
    if (together) await group.barrier({ label: name })
    const error = await check()
    return {
      ...{ name, rule, ...bytes, samples },
      ceilings: ceilings.map((ceiling, index) => ({ name: ceiling.name, samples: others[index]! })),
      ...(floor !== undefined && { floor: others.at(-1)! }),
      ...(error !== undefined && { error }),
    }
  } catch (error) {
    // The other ranks wait for this one; otherwise the rest of the list can still be measured.
    if (together) throw error
    const { code, message } = MoeEpError.from(error)
    return { name, rule: '', bytes: 0, samples: [], ceilings: [], error: `${code}: ${message}` }
  } finally {
    await scope.close()
  }
}

async function measureAll({ options }: RunSpec, group: ProcessGroup): Promise<RankSuccess> {
  const { ops, world, timeoutMs } = options
  const device = deviceOfRank(options, group)
  // The launcher's variables describe the world of all ranks.
  const solo = await connect({ environment: {}, timeoutMs })
  const stopwatches = await createStopwatches(device, group, options)
  try {
    const routing = new Routing({ ...options, ranks: world })
    const measurements: RankMeasurement[] = []
    for (const name of ops) {
      const stopwatch = isBetweenRanks(name) ? stopwatches.together : stopwatches.alone
      const measurement = await measureOperation({ options, group, solo, device, stopwatch, routing }, name)
      measurements.push(measurement)
      if (group.rank === 0) process.stderr.write(`${progressLine(summarizeOperation([measurement]))}\n`)
      if (device.kind === 'cuda') await group.barrier({ label: name })
    }
    return { rank: group.rank, ...(device instanceof CudaDevice && { gpu: device.gpu }), measurements }
  } finally {
    await stopwatches.close()
    await solo.close()
  }
}

async function main(): Promise<void> {
  const spec = JSON.parse(process.env[runSpecVariable] ?? 'null') as RunSpec
  const rank = Number(process.env['RANK'])
  const leave = (result: RankSuccess | RankFailure): Promise<void> =>
    writeFile(join(spec.folder, `rank-${rank}.json`), JSON.stringify(result))
  let group: ProcessGroup | undefined
  try {
    group = await connect({ timeoutMs: spec.options.timeoutMs })
    await leave(await measureAll(spec, group))
  } catch (error) {
    const failure = MoeEpError.from(error)
    // The others must not wait for a rank that has given up.
    group?.abort(failure)
    await leave({ rank, error: { code: failure.code, message: failure.message } })
    process.exitCode = 1
  } finally {
    await group?.close()
  }
}

await main()
