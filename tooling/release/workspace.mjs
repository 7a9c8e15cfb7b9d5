import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** Root folder of the repository. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))))

/**
 * The packages that are published, by name.
 * @returns {Map<string, { name: string, folder: string, manifest: any }>}
 */
export function publishedPackages() {
  const packages = new Map()
  for (const entry of readdirSync(join(root, 'packages')).sort()) {
    const folder = join(root, 'packages', entry)
    if (!existsSync(join(folder, 'package.json'))) continue
    const manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8'))
    if (!manifest.private) packages.set(manifest.name, { name: manifest.name, folder, manifest })
  }
  return packages
}

/** Names of what a package brings along when it is installed: dependencies and peers that are not optional. */
function companionsOf(manifest) {
  const peers = Object.keys(manifest.peerDependencies ?? {})
  const isNeeded = (name) => manifest.peerDependenciesMeta?.[name]?.optional !== true
  return [...Object.keys(manifest.dependencies ?? {}), ...peers.filter(isNeeded)]
}

/** `name` and all packages of this repository that it needs, directly or not. */
export function workspaceClosure(name, packages) {
  const closure = new Set()
  const visit = (current) => {
    if (closure.has(current) || !packages.has(current)) return
    closure.add(current)
    companionsOf(packages.get(current).manifest).forEach(visit)
  }
  visit(name)
  return [...closure]
}
