// Writes CUDA files as C++ that language/cuda_runtime.h understands: node rewrite.mjs FROM TO FILE...
//
// Three things cannot be said by a macro: declarations of shared memory, the clusters of a kernel, and PTX. Lines stay where they
// are, so that messages of the compiler name the right ones.
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { writeIfChanged } from '../../native/write-if-changed.mjs'

const [from, to, ...files] = process.argv.slice(2)

/** As many line breaks as `text` has. */
const lineBreaks = (text) => '\n'.repeat(text.split('\n').length - 1)

/** `extern __shared__ T name[];` and `__shared__ T name[2][3];` */
function rewriteShared(source) {
  return source
    .replace(
      /extern __shared__ (?:__align__\(\d+\) )?([\w:]+) (\w+)\[\];/g,
      '$1* const $2 = static_cast<$1*>(::software_cuda::DynamicShared());',
    )
    .replace(
      /__shared__ (?:__align__\(\d+\) )?((?:typename )?[\w:<> ]+?) (\w+)((?:\[[^;]*?\])?);/g,
      'auto& $2 = ::software_cuda::Shared<$1$3, decltype([] {})>();',
    )
}

/** Where the parenthesis that opens at `open` closes; colons and commas between are told to `visit`. */
function closing(source, open, visit = () => {}) {
  let depth = 0
  for (let i = open; i < source.length; i++) {
    const c = source[i]
    if (c === '"') {
      while (source[++i] !== '"') if (source[i] === '\\') i++
    } else if ('([{'.includes(c)) depth++
    else if (')]}'.includes(c) && --depth === 0) return i
    else if (depth === 1 && ':,'.includes(c)) visit(i, c)
  }
  throw new Error('a parenthesis does not close')
}

/** The function in language/ptx.h: the instruction that tells the texts apart. */
function nameOf(text) {
  if (text.includes('%%globaltimer')) return 'globaltimer'
  const instructions = text
    .replace(/\\n/g, '\n')
    .replace(/^\s*\{\s*$|^\s*\{(?=\s*\.)/gm, '')
    .split(/[;\n]/)
    .map((line) => line.trim())
    .filter((line) => line !== '' && !/^(\{|\}|\.reg|setp|selp|mov)/.test(line))
  if (text.trim() === '') return 'nothing'
  const [, conditional, opcode, operands] = /^(@\w+ )?([\w.:]+)(.*)/s.exec(instructions[0] ?? '') ?? []
  if (opcode === undefined) throw new Error(`no name for ${JSON.stringify(text)}`)
  // Numbers that the text itself has are part of what it does.
  const numbers = [...operands.matchAll(/(?<=[ ,])\d+(?=\s*(?:,|$))/g)].map(([number]) => `_${number}`)
  return (conditional ? 'if_' : '') + opcode.replace(/\.|::/g, '_') + numbers.join('')
}

function rewritePtx(source) {
  const statement = /\basm(?: volatile)?\(/
  let rest = source
  let written = ''
  for (;;) {
    const found = statement.exec(rest)
    if (!found) return written + rest
    const open = found.index + found[0].length - 1
    const marks = []
    const close = closing(rest, open, (at, c) => marks.push({ at, c }))
    const body = rest.slice(open + 1, close)
    const colons = marks.filter(({ c }) => c === ':').map(({ at }) => at)
    const text = [...body.slice(0, (colons[0] ?? close) - open - 1).matchAll(/"((?:[^"\\]|\\.)*)"/g)]
      .map((m) => m[1])
      .join('')
    const operandsEnd = colons[2] ?? close
    const cuts =
      colons.length === 0
        ? []
        : [colons[0], ...marks.map(({ at }) => at).filter((at) => at > colons[0] && at < operandsEnd), operandsEnd]
    const operands = []
    for (let i = 0; i + 1 < cuts.length; i++) {
      const operand = rest.slice(cuts[i] + 1, cuts[i + 1]).trim()
      if (operand !== '') operands.push(operand.replace(/^"[^"]*"/, '').replace(/\s+/g, ' '))
    }
    written += `${rest.slice(0, found.index)}::software_cuda::ptx::${nameOf(text)}(${operands.join(', ')})${lineBreaks(body)}`
    rest = rest.slice(close + 1)
  }
}

for (const file of files) {
  const source = readFileSync(join(from, file), 'utf8')
  const cpp = rewritePtx(rewriteShared(source)).replace(/__cluster_dims__\([^)]*\) ?/g, '')
  // To the compiler of C++ it would be an attribute that it does not know.
  if (/\b__shared__\b/.test(cpp)) throw new Error(`${file}: a declaration of shared memory that is not understood`)
  const path = join(to, file)
  mkdirSync(dirname(path), { recursive: true })
  writeIfChanged(path, `#line 1 "${join(from, file)}"\n${cpp}`)
}

// What was written for files that are gone.
const written = new Set(files)
for (const entry of readdirSync(to, { recursive: true, withFileTypes: true })) {
  const path = join(entry.parentPath ?? entry.path, entry.name)
  if (entry.isFile() && !written.has(relative(to, path))) rmSync(path)
}
