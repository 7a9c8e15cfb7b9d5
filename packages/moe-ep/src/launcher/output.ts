import { StringDecoder } from 'node:string_decoder'
import type { Readable } from 'node:stream'
import type { LaunchOutput, OutputStream } from './launch-options.js'

/** Without a line end in sight, so many characters make a line: a rank cannot make this process hoard. */
const longestLine = 64 * 1024

/** How much of each stream `pipe` keeps, in characters. */
const keptCharacters = 1024 * 1024

/** Takes what one rank writes to where the options say. */
export class OutputCollector {
  readonly #rank: number
  readonly #output: LaunchOutput
  readonly #kept: Record<OutputStream, string> = { stdout: '', stderr: '' }
  readonly #flushes: (() => void)[] = []

  constructor(rank: number, output: LaunchOutput) {
    this.#rank = rank
    this.#output = output
  }

  /** Follows a stream of the rank to its end. */
  follow(stream: OutputStream, source: Readable | null): void {
    if (!source) return
    const decoder = new StringDecoder('utf8')
    let pending = ''
    source.on('data', (chunk: Buffer | string) => {
      const text = typeof chunk === 'string' ? chunk : decoder.write(chunk)
      if (this.#output === 'pipe') return this.#keep(stream, text)
      const lines = (pending + text).split('\n')
      pending = lines.pop() ?? ''
      for (const line of lines) this.write(stream, line)
      if (pending.length > longestLine) {
        this.write(stream, pending)
        pending = ''
      }
    })
    // A broken pipe only means that the rank is gone, which its end tells as well.
    source.on('error', () => {})
    this.#flushes.push(() => {
      pending += decoder.end()
      if (this.#output === 'pipe') this.#keep(stream, pending)
      else if (pending) this.write(stream, pending)
      pending = ''
    })
  }

  /** Takes one line, as if the rank had written it. */
  write(stream: OutputStream, line: string): void {
    if (typeof this.#output === 'function') return this.#output(this.#rank, stream, line)
    if (this.#output === 'pipe') return this.#keep(stream, `${line}\n`)
    const prefix = this.#output === 'prefix' ? `[${this.#rank}] ` : ''
    process[stream].write(`${prefix}${line}\n`)
  }

  /** Writes unfinished last lines, and gives what is kept for the result. */
  finish(): { stdout: string; stderr: string } | undefined {
    for (const flush of this.#flushes.splice(0)) flush()
    return this.#output === 'pipe' ? { ...this.#kept } : undefined
  }

  #keep(stream: OutputStream, text: string): void {
    this.#kept[stream] = (this.#kept[stream] + text).slice(-keptCharacters)
  }
}
