import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync, statSync } from 'node:fs'
import { join, relative, sep } from 'node:path'
import { entriesOf, moduleClosure } from './modules.mjs'

/** What tests and programs import beyond the workspace. */
const wantedModules = ['vitest', 'fast-check', 'node-api-headers', 'onnxruntime-node']

/** Large dependencies of those that only builds for browsers, or type checks, load. */
const isLeftOut = (name) => /^(esbuild|lightningcss|typescript|@types\/.*)$/.test(name)

/** Folders with a package.json of the workspace, the root's own among them. */
function workspaceFolders(root) {
  const groups = ['packages', 'apps', 'tooling']
  const folders = groups.flatMap((group) => readdirSync(join(root, group)).map((name) => join(root, group, name)))
  return [root, ...folders.filter((folder) => existsSync(join(folder, 'package.json')))]
}

function filesBelow(folder) {
  return readdirSync(folder, { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
}

/** Files that no program reads while it runs, on the host that this is for. */
const isLeftBehind = (path) => /\.(map|d\.[cm]?ts|md)$/i.test(path) || isForOtherHosts(path)
const isForOtherHosts = (path) => /\/bin\/napi-v\d+\//.test(path) && !path.includes('/linux/x64/')

/** Paths that git knows or would take, in the state that they have on disk. */
function sourceFiles(root) {
  const args = ['ls-files', '-z', '--cached', '--others', '--exclude-standard']
  const listed = execFileSync('git', args, { cwd: root, encoding: 'utf8' }).split('\0').filter(Boolean)
  return listed.map((path) => join(root, path)).filter((path) => existsSync(path))
}

/**
 * Everything that the tests and programs of the workspace need to run, as sorted paths from the root: sources, built packages and
 * addons, and installed modules with the links between them.
 * @throws when a package is not built.
 */
export function bundleFiles(root) {
  const paths = new Set(sourceFiles(root))
  const addModule = (link) => {
    paths.add(link)
    const { folders, links } = moduleClosure(link, isLeftOut)
    for (const path of links) paths.add(path)
    for (const folder of folders)
      for (const file of filesBelow(folder))
        if (!isLeftBehind(file) && !relative(folder, file).includes('node_modules')) paths.add(file)
  }
  for (const folder of workspaceFolders(root)) {
    for (const output of ['dist', 'prebuilds']) {
      if (!isBuilt(folder, output)) continue
      for (const file of filesBelow(join(folder, output))) if (!isLeftBehind(file)) paths.add(file)
    }
    for (const name of entriesOf(join(folder, 'node_modules'))) {
      const link = join(folder, 'node_modules', name)
      const target = relative(root, realpathSync(link))
      if (wantedModules.includes(name)) addModule(link)
      else if (!target.split(sep).includes('node_modules')) paths.add(link)
    }
  }
  return [...paths].map((path) => relative(root, path)).sort()
}

/** Whether the package should have this output; an error when it should, and has not. */
function isBuilt(folder, output) {
  const source = output === 'dist' ? 'tsup.config.ts' : join('native', 'CMakeLists.txt')
  if (!existsSync(join(folder, source))) return false
  if (existsSync(join(folder, output))) return true
  throw new Error(`${join(folder, output)} is missing: run pnpm build first`)
}

/** Bytes of the files, links counted as nothing, by the first `depth` folders of their paths. */
export function sizesByFolder(root, paths, depth = 2) {
  const sizes = new Map()
  for (const path of paths) {
    const bytes = statSync(join(root, path)).isFile() ? statSync(join(root, path)).size : 0
    const key = path.split(sep).slice(0, depth).join('/')
    sizes.set(key, (sizes.get(key) ?? 0) + bytes)
  }
  return sizes
}
