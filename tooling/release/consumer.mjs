// Uses a packed package the way a stranger would: npm install in an empty folder, then import, require and the README.
import { mkdirSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { readmeExample } from './readme-example.mjs'
import { runProgram } from './run-program.mjs'
import { root, workspaceClosure } from './workspace.mjs'

const require = createRequire(import.meta.url)
// tsup brings esbuild; a second copy in the root manifest could drift from it.
const { transform } = createRequire(require.resolve('tsup'))('esbuild')

const exampleSeconds = 60

/** What a name is imported as: the package and each further entry of its `exports`. */
function entriesOf({ name, manifest }) {
  return Object.entries(manifest.exports)
    .filter(([path]) => path !== './package.json' && !path.includes('*'))
    .map(([path, target]) => ({
      specifier: join(name, path),
      hasImport: typeof target === 'string' || 'import' in target || 'default' in target,
      hasRequire: typeof target === 'string' || 'require' in target || 'default' in target,
    }))
}

/** Program that loads one entry by `import` and by `require` and compares what the two offer. */
function loaderOf({ specifier, hasImport, hasRequire }) {
  const name = JSON.stringify(specifier)
  return `
import { createRequire } from 'node:module'
const visible = (loaded) => Object.keys(loaded).filter((key) => key !== 'default' && !key.startsWith('__')).sort().join(', ')
const imported = ${hasImport} ? visible(await import(${name})) : undefined
const required = ${hasRequire} ? visible(createRequire(import.meta.url)(${name})) : undefined
for (const names of [imported, required]) if (names === '') throw new Error(${name} + ' exports nothing')
if (imported !== undefined && required !== undefined && imported !== required) {
  throw new Error(${name} + ': import gives ' + imported + '; require gives ' + required)
}
`
}

/** Checks the example against the packed declarations, as a strict project of a user would. */
async function typecheckExample(folder) {
  const compilerOptions = {
    target: 'es2022',
    lib: ['es2023', 'esnext.disposable'],
    module: 'nodenext',
    strict: true,
    noEmit: true,
    types: ['node'],
    typeRoots: [join(root, 'node_modules', '@types')],
  }
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['example.mts'] }))
  await runProgram(process.execPath, [require.resolve('typescript/bin/tsc'), '-p', folder], { cwd: folder })
}

async function runExample({ name, folder: packageFolder, manifest }, folder, install) {
  const example = readmeExample(packageFolder)
  if (!example) throw new Error(`${name}: README.md has no code block marked "ts runnable" or "js runnable"`)
  if (example.companions.length > 0) {
    const versions = { ...manifest.peerDependencies, ...manifest.devDependencies }
    await install(example.companions.map((companion) => `${companion}@${versions[companion] ?? '*'}`))
  }
  let { code } = example
  if (example.language === 'ts') {
    writeFileSync(join(folder, 'example.mts'), code)
    await typecheckExample(folder)
    code = (await transform(code, { loader: 'ts', format: 'esm', target: 'node20' })).code
  }
  writeFileSync(join(folder, 'example.mjs'), code)
  try {
    await runProgram(process.execPath, ['example.mjs'], { cwd: folder, seconds: exampleSeconds })
  } catch (error) {
    throw new Error(`the example at line ${example.line} of README.md of ${name} failed`, { cause: error })
  }
}

/**
 * Installs one package with what it needs from this repository into `folder`, which must not exist, and uses it.
 * @param {{ name: string, folder: string, manifest: any }} published
 * @param {{ folder: string, packages: Map<string, any>, packed: Map<string, { tarball: string }> }} where
 */
export async function tryAsConsumer(published, { folder, packages, packed }) {
  mkdirSync(folder, { recursive: true })
  const npm = (...args) => runProgram('npm', args, { cwd: folder })
  // Without install scripts, as package managers now run by default: no package may depend on them.
  const install = (specs) => npm('install', '--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline', ...specs)

  await npm('init', '--yes')
  await install(workspaceClosure(published.name, packages).map((name) => packed.get(name).tarball))
  for (const entry of entriesOf(published)) {
    writeFileSync(join(folder, 'load.mjs'), loaderOf(entry))
    await runProgram(process.execPath, ['load.mjs'], { cwd: folder, seconds: exampleSeconds })
  }
  for (const command of Object.keys(published.manifest.bin ?? {})) {
    const help = await runProgram(join(folder, 'node_modules', '.bin', command), ['--help'], {
      cwd: folder,
      seconds: 20,
    })
    if (help.trim() === '') throw new Error(`${command} --help prints nothing`)
  }
  await runExample(published, folder, install)
}

/** Folder name for a package: the scope's slash would make two. */
export function folderNameOf(name) {
  return name.replace('@', '').replace('/', '-')
}

/** Folder of an installed tool's command in the root's node_modules. */
export function toolPath(command) {
  return join(dirname(require.resolve('../../package.json')), 'node_modules', '.bin', command)
}
