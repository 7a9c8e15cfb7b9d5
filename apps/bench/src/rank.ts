import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { getDevice, MoeEpError } from '@moe-ep/core'
import { connect, type ProcessGroup } from '@moe-ep/transport'
import type { OperationName } from './command/operation-names.js'
import { measureCases } from './measure/measure-cases.js'
import { Scope } from './measure/scope.js'
import { Stopwatch } from './measure/stopwatch.js'
import { operations } from './operations/index.js'
import type { BenchContext } from './operations/operation.js'
import type { RankFailure, RankMeasurement, RankSuccess } from './results/rank-measurement.js'
import { type RunSpec, runSpecVariable } from './run-spec.js'
import { Routing } from './workload/routing.js'

async function measureOperation(context: BenchContext, name: OperationName): Promise<RankMeasurement> {
  const { options, group, device } = context
  const scope = new Scope(device)
  try {
    const { subject, ceilings, check, block = 1, rule, ...bytes } = await operations[name](context, scope)
    const { iters, warmup } = options
    const [samples = [], ...others] = await measureCases([subject, ...ceilings], { iters, warmup, block })
    // Nobody takes memory away that another rank still works with.
    await group.barrier({ label: name })
    const error = check()
    return {
      ...{ name, rule, ...bytes, samples },
      ceilings: ceilings.map((ceiling, index) => ({ name: ceiling.name, samples: others[index]! })),
      ...(error !== undefined && { error }),
    }
  } finally {
    await scope.close()
  }
}

async function measureAll({ options }: RunSpec, group: ProcessGroup): Promise<RankSuccess> {
  const { threads, ops, ranks, timeoutMs } = options
  // The launcher's variables describe the world of all ranks.
  const solo = await connect({ environment: {}, timeoutMs })
  const stopwatch = await Stopwatch.create(group, { threads })
  try {
    const device = getDevice('cpu')
    const context = { options, group, solo, device, stopwatch, routing: new Routing({ ...options, ranks }) }
    const measurements: RankMeasurement[] = []
    for (const name of ops) {
      if (group.rank === 0) process.stderr.write(`${name}\n`)
      measurements.push(await measureOperation(context, name))
    }
    return { rank: group.rank, measurements }
  } finally {
    await stopwatch.close()
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
