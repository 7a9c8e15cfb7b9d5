import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { bundleFiles } from '../bundle-files.mjs'

let root = ''
beforeEach(() => void (root = mkdtempSync(join(tmpdir(), 'moe-ep-bundle-'))))
afterEach(() => rmSync(root, { recursive: true, force: true }))

function write(path, content = '') {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), typeof content === 'string' ? content : JSON.stringify(content))
}

function link(path, target) {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  symlinkSync(relative(dirname(join(root, path)), join(root, target)), join(root, path))
}

/** An installed module as pnpm lays it out, with links to its dependencies. */
function install(name, manifest = {}) {
  const store = `node_modules/.pnpm/${name.replace('/', '+')}@1.0.0/node_modules`
  write(`${store}/${name}/package.json`, { name, ...manifest })
  for (const dependency of Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies })) {
    if (dependency === 'for-another-platform') continue
    link(
      `${store}/${dependency}`,
      `node_modules/.pnpm/${dependency.replace('/', '+')}@1.0.0/node_modules/${dependency}`,
    )
  }
  return `${store}/${name}`
}

function makeWorkspace() {
  execFileSync('git', ['init', '--quiet'], { cwd: root })
  write('.gitignore', 'node_modules\ndist\nprebuilds\n')
  write('package.json', { name: 'workspace' })
  for (const folder of ['apps', 'tooling']) mkdirSync(join(root, folder))
  write('packages/core/package.json', { name: '@moe-ep/core' })
  write('packages/core/src/index.ts')
  write('packages/layout/package.json', { name: '@moe-ep/layout' })
  write('packages/layout/tsup.config.ts')
  link('packages/layout/node_modules/@moe-ep/core', 'packages/core')

  const vitest = install('vitest', {
    dependencies: { '@vitest/runner': '*', esbuild: '*' },
    optionalDependencies: { 'for-another-platform': '*' },
  })
  install('@vitest/runner', { dependencies: { vitest: '*' } })
  install('esbuild')
  const typescript = install('typescript')
  for (const name of ['index.js', 'index.js.map', 'index.d.ts', 'README.md']) write(`${vitest}/${name}`)
  link('node_modules/vitest', vitest)
  link('node_modules/typescript', typescript)
}

test('holds sources, what is built, and wanted modules with what they need', () => {
  makeWorkspace()
  for (const name of ['index.js', 'index.js.map', 'index.d.ts']) write(`packages/layout/dist/${name}`)
  const store = 'node_modules/.pnpm'
  expect(bundleFiles(root)).toEqual(
    [
      '.gitignore',
      'package.json',
      'packages/core/package.json',
      'packages/core/src/index.ts',
      'packages/layout/dist/index.js',
      'packages/layout/node_modules/@moe-ep/core',
      'packages/layout/package.json',
      'packages/layout/tsup.config.ts',
      'node_modules/vitest',
      `${store}/vitest@1.0.0/node_modules/vitest/index.js`,
      `${store}/vitest@1.0.0/node_modules/vitest/package.json`,
      `${store}/vitest@1.0.0/node_modules/@vitest/runner`,
      `${store}/@vitest+runner@1.0.0/node_modules/@vitest/runner/package.json`,
      `${store}/@vitest+runner@1.0.0/node_modules/vitest`,
    ].sort(),
  )
})

test('is refused where a package is not built', () => {
  makeWorkspace()
  expect(() => bundleFiles(root)).toThrow(/packages\/layout\/dist is missing/)
})
