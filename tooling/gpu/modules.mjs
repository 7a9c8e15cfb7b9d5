import { existsSync, readdirSync, readFileSync, realpathSync } from 'node:fs'
import { dirname, join } from 'node:path'

/** Entries of a node_modules folder by package name, scoped ones too. */
export function entriesOf(folder) {
  if (!existsSync(folder)) return []
  return readdirSync(folder)
    .filter((name) => !name.startsWith('.'))
    .flatMap((name) =>
      name.startsWith('@') ? readdirSync(join(folder, name)).map((part) => `${name}/${part}`) : [name],
    )
}

/** The node_modules folder that holds the package in `folder`, and with pnpm what that package depends on. */
function siblingsOf(folder, name) {
  return name.startsWith('@') ? dirname(dirname(folder)) : dirname(folder)
}

/**
 * What an installed package needs at run time, itself included: folders of packages, and the links to them that pnpm puts
 * beside each one. Dependencies that are not installed (for other platforms, say) and those that `isLeftOut` names are left out.
 * @param {string} folder Of the package; links are followed.
 * @param {(name: string) => boolean} isLeftOut
 * @returns {{ folders: Set<string>, links: Set<string> }}
 */
export function moduleClosure(folder, isLeftOut) {
  const folders = new Set()
  const links = new Set()
  const visit = (linked) => {
    const real = realpathSync(linked)
    if (folders.has(real)) return
    folders.add(real)
    const manifest = JSON.parse(readFileSync(join(real, 'package.json'), 'utf8'))
    const siblings = siblingsOf(real, manifest.name)
    const { dependencies, optionalDependencies, peerDependencies } = manifest
    for (const name of Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies })) {
      const link = join(siblings, name)
      if (isLeftOut(name) || !existsSync(link)) continue
      links.add(link)
      visit(link)
    }
  }
  visit(folder)
  return { folders, links }
}
