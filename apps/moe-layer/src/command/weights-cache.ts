import { mkdir } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { MoeEpError } from '@moe-ep/core'

/** The folder where made weights are kept, made if need be: in MOE_EP_CACHE, else in the platform's cache folder. */
export async function weightsCache(): Promise<string> {
  const root = process.env['MOE_EP_CACHE'] ?? join(process.env['XDG_CACHE_HOME'] ?? join(homedir(), '.cache'), 'moe-ep')
  if (root === '') throw new MoeEpError('ERR_MOE_EP_CONFIG', 'MOE_EP_CACHE: expected a folder, received nothing')
  const path = join(root, 'weights')
  try {
    await mkdir(path, { recursive: true })
  } catch (error) {
    throw new MoeEpError('ERR_MOE_EP_CONFIG', `MOE_EP_CACHE: cannot make ${path}: ${(error as Error).message}`, {
      cause: error,
    })
  }
  return path
}
