#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { MoeEpError } from '@moe-ep/core'
import { benchFlags, benchOptionsFrom } from './command/bench-options.js'
import { helpText } from './command/help.js'
import { runBench } from './command/run-bench.js'
import type { BenchResult } from './results/bench-result.js'
import { terminalReport } from './results/terminal-table.js'

async function main(args: string[]): Promise<number> {
  const json = args.includes('--json')
  let result: BenchResult | undefined
  try {
    const { values } = parseArgs({ args, options: benchFlags })
    if (values.help) {
      console.log(helpText)
      return 0
    }
    result = await runBench(benchOptionsFrom(values))
    if (!json) console.log(terminalReport(result))
    if (!result.ok)
      throw new MoeEpError('ERR_MOE_EP_CHECK_FAILED', 'operations failed or gave wrong results: see there')
    if (json) console.log(JSON.stringify(result))
    return 0
  } catch (error) {
    // What parseArgs refuses has codes of its own; to the user it is a bad configuration.
    const fromParser = String((error as { code?: unknown }).code).startsWith('ERR_PARSE_ARGS')
    const { code, message } = MoeEpError.from(error, fromParser ? 'ERR_MOE_EP_CONFIG' : 'ERR_MOE_EP_INTERNAL')
    if (json) console.log(JSON.stringify({ ok: false, ...result, error: { code, message } }))
    console.error(`bench: ${code}: ${message}`)
    return 1
  }
}

process.exitCode = await main(process.argv.slice(2))
