// Quick checks of the repository itself: what is tracked, what is written in it, and what the manifests promise.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './workspace.mjs'

// A clone that belongs to another user is still the one to check.
function git(...args) {
  const result = spawnSync('git', ['-c', 'safe.directory=*', ...args], { cwd: root, encoding: 'utf8' })
  if (result.error) throw result.error
  return result
}

const buildOutput = /(^|\/)(node_modules|dist|build|prebuilds|coverage|\.turbo)\/|\.(node|o|so|tgz|tsbuildinfo)$/

function trackedBuildOutputs() {
  const { status, stdout, stderr } = git('ls-files', '-z')
  if (status !== 0) throw new Error(`git ls-files failed: ${stderr}`)
  return stdout
    .split('\0')
    .filter((path) => buildOutput.test(path))
    .map((path) => `${path}: build output is tracked`)
}

function unfinishedWork() {
  // Put together here, so that this file does not find itself.
  const marks = ['TO', 'FIX'].map((start, index) => start + ['DO', 'ME'][index])
  const { status, stdout, stderr } = git('grep', '-nIwE', '--untracked', marks.join('|'))
  // git grep: 0 when something was found, 1 when nothing was.
  if (status > 1 || status === null) throw new Error(`git grep failed: ${stderr}`)
  return stdout.split('\n').filter(Boolean)
}

/** Conditions of one entry that are missing or in an order that resolvers would misread. */
function exportProblems(path, target) {
  if (typeof target === 'string') return path === './package.json' ? [] : [`exports["${path}"] has no conditions`]
  const problems = []
  const conditions = Object.keys(target)
  if (conditions[0] !== '@moe-ep/source') problems.push(`exports["${path}"]: "@moe-ep/source" must come first`)
  for (const condition of ['import', 'require']) {
    const order = Object.keys(target[condition] ?? {}).join(',')
    if (order !== 'types,default') problems.push(`exports["${path}"].${condition}: expected types, then default`)
  }
  return problems
}

function manifestProblems({ folder, manifest }) {
  const problems = []
  const demand = (holds, text) => {
    if (!holds) problems.push(text)
  }
  const hasAddon = existsSync(join(folder, 'native', 'CMakeLists.txt'))
  demand(manifest.license === 'Apache-2.0', 'license must be Apache-2.0')
  demand(manifest.engines?.node === '>=20.19', 'engines.node must be >=20.19')
  demand(manifest.type === 'module', 'type must be module')
  demand(Boolean(manifest.description), 'description is missing')
  demand(manifest.publishConfig?.access === 'public', 'publishConfig.access must be public')
  demand(manifest.files?.includes('dist'), 'files must list dist')
  demand(!manifest.scripts?.install && !manifest.scripts?.postinstall, 'install scripts are not allowed')
  // Without it npm would run node-gyp on the user's machine as soon as it sees a binding.gyp.
  demand(!hasAddon || manifest.gypfile === false, 'gypfile must be false')
  demand(!hasAddon || manifest.files?.includes('prebuilds'), 'files must list prebuilds')
  demand('./package.json' in (manifest.exports ?? {}), 'exports must offer ./package.json')
  for (const [path, target] of Object.entries(manifest.exports ?? {})) problems.push(...exportProblems(path, target))
  return problems.map((problem) => `${manifest.name}: ${problem}`)
}

/** Everything that is out of order, one line each. */
export function hygieneProblems(packages) {
  return [...trackedBuildOutputs(), ...unfinishedWork(), ...[...packages.values()].flatMap(manifestProblems)]
}
