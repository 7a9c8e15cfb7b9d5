import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

const opening = /^```(ts|js) runnable(?: with (?<companions>\S.*))?\s*$/

/**
 * The first code block of a package's README that is marked as runnable, or undefined.
 *
 * The block's info string is `ts runnable` or `js runnable`; `ts runnable with onnxruntime-node` also names optional
 * peers that the example needs, separated by spaces.
 * @param {string} folder Folder of the package.
 */
export function readmeExample(folder) {
  const path = join(folder, 'README.md')
  if (!existsSync(path)) return undefined
  const lines = readFileSync(path, 'utf8').split('\n')
  const first = lines.findIndex((line) => opening.test(line))
  if (first < 0) return undefined
  const length = lines.slice(first + 1).findIndex((line) => line.startsWith('```'))
  if (length < 0) return undefined
  const [, language, companions = ''] = opening.exec(lines[first])
  return {
    language,
    companions: companions.split(/\s+/).filter(Boolean),
    code: `${lines.slice(first + 1, first + 1 + length).join('\n')}\n`,
    line: first + 1,
  }
}
