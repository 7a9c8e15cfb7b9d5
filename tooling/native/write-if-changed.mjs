import { readFileSync, renameSync, writeFileSync } from 'node:fs'

function read(path) {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if (error.code === 'ENOENT') return undefined
    throw error
  }
}

/** Gives `path` this content, in one step and only when it differs, so that readers see either the old or the new. */
export function writeIfChanged(path, content) {
  if (read(path) === content) return
  const temporary = `${path}.${process.pid}`
  writeFileSync(temporary, content)
  renameSync(temporary, path)
}
