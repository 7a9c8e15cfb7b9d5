import { constants } from 'node:os'
import { parseArgs } from 'node:util'
import { MoeEpError } from '@moe-ep/core'
import { type LaunchOptions, type LaunchResult, launch } from '../launcher/index.js'
import { describeFailure } from '../launcher/launch-result.js'

const optionTypes = {
  ranks: { type: 'string', short: 'n' },
  nodes: { type: 'string' },
  threads: { type: 'boolean' },
  'timeout-ms': { type: 'string' },
} as const

/** Runs `moe-ep run` and gives its exit code. */
export async function runCommand(args: readonly string[]): Promise<number> {
  const result = await launch(parseRunArguments(args))
  if (result.ok) return 0
  process.stderr.write(`moe-ep: ${describeEnd(result)}\n`)
  const received = result.stoppedBy as keyof typeof constants.signals | undefined
  return received && received in constants.signals ? 128 + constants.signals[received] : 1
}

/**
 * Gives the launch that a command line describes. Everything after the script is the script's.
 *
 * @throws ERR_MOE_EP_CONFIG naming what is wrong
 */
export function parseRunArguments(args: readonly string[]): LaunchOptions {
  const scriptIndex = findScript(args)
  const own = scriptIndex === -1 ? args : args.slice(0, scriptIndex)
  const values = parseOwn(own.filter((argument) => argument !== '--'))
  const script = args[scriptIndex]
  if (script === undefined) throw configError('run needs a script')
  if (values.ranks === undefined) throw configError('run needs the number of ranks: -n RANKS')
  return {
    ranks: readInteger('-n', values.ranks),
    script,
    args: args.slice(scriptIndex + 1),
    mode: values.threads ? 'thread' : 'process',
    ...(values.nodes === undefined ? {} : { nodes: readInteger('--nodes', values.nodes) }),
    ...(values['timeout-ms'] === undefined ? {} : { timeoutMs: readInteger('--timeout-ms', values['timeout-ms']) }),
  }
}

/** The place of the first argument that belongs to no option. */
function findScript(args: readonly string[]): number {
  const { tokens } = parseArgs({
    args: [...args],
    options: optionTypes,
    allowPositionals: true,
    strict: false,
    tokens: true,
  })
  return tokens.find((token) => token.kind === 'positional')?.index ?? -1
}

function parseOwn(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: optionTypes, allowPositionals: false, strict: true }).values
  } catch (error) {
    throw configError((error as Error).message)
  }
}

function readInteger(name: string, text: string): number {
  if (/^\d{1,10}$/.test(text)) return Number(text)
  throw configError(`${name}: expected a number, received ${JSON.stringify(text)}`)
}

function describeEnd({ firstFailure, stoppedBy, ranks }: LaunchResult): string {
  const numFailed = ranks.filter(({ exitCode }) => exitCode !== 0).length
  const others = firstFailure && numFailed > 1 ? ` (first of ${numFailed} ranks that failed)` : ''
  const what = firstFailure ? `${describeFailure(firstFailure)}${others}` : 'all ranks were stopped'
  if (!stoppedBy) return what
  return `${what}; stopped by ${stoppedBy === 'timeout' ? 'the deadline (--timeout-ms)' : stoppedBy}`
}

function configError(message: string): MoeEpError {
  return new MoeEpError('ERR_MOE_EP_CONFIG', message)
}
