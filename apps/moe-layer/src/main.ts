#!/usr/bin/env node
import { parseArgs } from 'node:util'
import { MoeEpError } from '@moe-ep/core'
import { disableOnnxTelemetry } from '@moe-ep/experts'
import { helpText } from './command/help.js'
import { layerFlags, layerOptionsFrom } from './command/layer-options.js'
import { makeWeightsCommand } from './command/make-weights-command.js'
import { runLayer } from './command/run-layer.js'
import type { LayerResult } from './results/layer-result.js'
import { requireRight } from './results/require-right.js'
import { terminalReport } from './results/terminal-table.js'

async function main(args: string[]): Promise<number> {
  // Here, where ranks inherit it: worker threads could not do it themselves.
  disableOnnxTelemetry()
  const json = args.includes('--json')
  let result: LayerResult | undefined
  try {
    if (args[0] === 'make-weights') {
      await makeWeightsCommand(args.slice(1))
      return 0
    }
    const { values } = parseArgs({ args, options: layerFlags })
    if (values.help) {
      console.log(helpText)
      return 0
    }
    result = await runLayer(layerOptionsFrom(values))
    if (!json) console.log(terminalReport(result))
    requireRight(result)
    if (json) console.log(JSON.stringify(result))
    return 0
  } catch (error) {
    const { code, message } = asConfigError(error)
    if (json) console.log(JSON.stringify({ ok: false, ...result, error: { code, message } }))
    console.error(`moe-layer: ${code}: ${message}`)
    return 1
  }
}

/** parseArgs has codes of its own; to the user a bad flag is a bad configuration. */
function asConfigError(error: unknown): MoeEpError {
  const fromParser = String((error as { code?: unknown }).code).startsWith('ERR_PARSE_ARGS')
  return MoeEpError.from(error, fromParser ? 'ERR_MOE_EP_CONFIG' : 'ERR_MOE_EP_INTERNAL')
}

process.exitCode = await main(process.argv.slice(2))
