// Preloaded (`node --import`): wherever a package loads an addon that is here too, it gets the one over the software runtime.
import { existsSync } from 'node:fs'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'

const addons = new URL(`prebuilds/${process.platform}-${process.arch}/`, import.meta.url)

const load = process.dlopen
process.dlopen = (module, path, ...rest) => {
  const replacement = fileURLToPath(new URL(basename(path), addons))
  return load.call(process, module, existsSync(replacement) ? replacement : path, ...rest)
}
