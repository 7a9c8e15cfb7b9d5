// Looks at the compiler, CMake, Ninja and nvcc of this machine. Changes nothing.
import { execFile } from 'node:child_process'
import { join } from 'node:path'

/** The oldest Node that the packages support (`engines` in their manifests). */
export const oldestNode = { major: 20, minor: 19 }

const oldestCmake = { major: 3, minor: 25 }

/** Output of a program, or why there is none. */
function outputOf(program, args, input = '') {
  return new Promise((resolve) => {
    const child = execFile(program, args, { timeout: 20_000 }, (error, stdout, stderr) => {
      if (!error) return resolve({ text: stdout })
      const firstLine = stderr.trim().split('\n')[0]
      resolve({ reason: error.code === 'ENOENT' ? 'not found' : firstLine || error.message })
    })
    // A program that never reads its input breaks the pipe, which is no news.
    child.stdin?.on('error', () => {})
    child.stdin?.end(input)
  })
}

/**
 * Identity of the first C++20 compiler. Only the preprocessor runs: that is quick, and including <version> proves that
 * a standard library is there too. `c++` comes first because CMake looks for it first.
 */
async function inspectCompiler() {
  const candidates = process.env.CXX ? [process.env.CXX] : ['c++', 'g++', 'clang++']
  const reasons = []
  for (const candidate of candidates) {
    const [program, ...ownArguments] = candidate.split(' ')
    const args = [...ownArguments, '-std=c++20', '-x', 'c++', '-E', '-dM', '-']
    const { text, reason } = await outputOf(program, args, '#include <version>\n')
    if (text === undefined) {
      reasons.push(`${candidate}: ${reason}`)
      continue
    }
    const macro = (name) => new RegExp(`^#define ${name} (.*)$`, 'm').exec(text)?.[1]
    if (macro('__cpp_lib_span') && macro('__cpp_concepts')) {
      const library = macro('__GLIBCXX__') ?? macro('_LIBCPP_VERSION') ?? 'unknown'
      return { value: `${candidate} ${macro('__VERSION__')?.replaceAll('"', '')}, library ${library}` }
    }
    reasons.push(`${candidate}: no C++20`)
  }
  return { reason: reasons.join('; ') }
}

async function inspectCmake() {
  const { text, reason } = await outputOf('cmake', ['--version'])
  const [version, major, minor] = /(\d+)\.(\d+)\.\S+/.exec(text ?? '') ?? []
  if (!version) return { reason: reason ?? 'unknown version' }
  const isOld = +major < oldestCmake.major || (+major === oldestCmake.major && +minor < oldestCmake.minor)
  return isOld ? { reason: `${version} is older than ${oldestCmake.major}.${oldestCmake.minor}` } : { value: version }
}

async function inspectNinja() {
  const { text, reason } = await outputOf('ninja', ['--version'])
  return text === undefined ? { reason } : { value: text.trim() }
}

/** Version of nvcc, or null: CUDA is optional. Looked for where CMake would look. */
async function inspectNvcc() {
  const { CUDACXX, CUDA_HOME, CUDA_PATH } = process.env
  const folders = [CUDA_HOME, CUDA_PATH, '/usr/local/cuda'].filter(Boolean)
  for (const program of [CUDACXX, 'nvcc', ...folders.map((folder) => join(folder, 'bin', 'nvcc'))]) {
    const { text } = program ? await outputOf(program, ['--version']) : {}
    const version = /release .*/.exec(text ?? '')?.[0]
    if (version) return version
  }
  return null
}

/** Version of the C library that this Node runs on; null where it is not glibc. */
function glibcVersion() {
  process.report.excludeNetwork = true
  return process.report.getReport().header.glibcVersionRuntime ?? null
}

/**
 * What is here, and what is missing with the reason.
 * @returns {Promise<{ toolchain: Record<string, string | null>, missing: { tool: string, reason: string }[] }>}
 */
export async function inspectToolchain() {
  const [compiler, cmake, ninja, nvcc] = await Promise.all([
    inspectCompiler(),
    inspectCmake(),
    inspectNinja(),
    inspectNvcc(),
  ])
  const missing = Object.entries({ compiler, cmake, ninja })
    .filter(([, { value }]) => value === undefined)
    .map(([tool, { reason }]) => ({ tool, reason }))
  const toolchain = {
    platform: process.platform,
    arch: process.arch,
    glibc: glibcVersion(),
    compiler: compiler.value ?? null,
    cmake: cmake.value ?? null,
    ninja: ninja.value ?? null,
    nvcc,
  }
  return { toolchain, missing }
}
