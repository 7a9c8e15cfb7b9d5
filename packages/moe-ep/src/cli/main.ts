import { MoeEpError } from '@moe-ep/core'
import { version } from '../version.js'
import { devicesCommand } from './devices-command.js'
import { runCommand } from './run-command.js'
import { usage } from './usage.js'

/**
 * Runs the `moe-ep` command and gives its exit code: 0 when all went well, 1 when a rank failed, 2 for a wrong
 * command line, 128 and the signal's number when a signal ended the run.
 *
 * @param argv the arguments without the names of Node and of the script
 */
export async function main(argv: readonly string[]): Promise<number> {
  const [command, ...rest] = argv
  try {
    if (command === '--version') return print(`${version}\n`)
    if (command === '--help' || command === '-h' || (command === 'run' && isHelp(rest[0]))) return print(usage)
    if (command === 'run') return await runCommand(rest)
    if (command === 'devices' && rest.length === 0) return devicesCommand()
    process.stderr.write(
      `moe-ep: ${command === undefined ? 'a command is missing' : 'unknown command line'}\n\n${usage}`,
    )
    return 2
  } catch (error) {
    const { code, message } = MoeEpError.from(error)
    process.stderr.write(`moe-ep: ${message} (${code})\n`)
    return code === 'ERR_MOE_EP_CONFIG' || code === 'ERR_MOE_EP_ARGUMENT' ? 2 : 1
  }
}

function isHelp(argument: string | undefined): boolean {
  return argument === '--help' || argument === '-h'
}

function print(text: string): number {
  process.stdout.write(text)
  return 0
}
