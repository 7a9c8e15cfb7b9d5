import { readFile } from 'node:fs/promises'
import { freemem } from 'node:os'
import { dirname, join } from 'node:path'

/** Where the system says what memory there is; tests put folders of their own in its place. */
export interface MemorySources {
  /** Bytes that the whole machine has left. @default {@link freemem} */
  readonly machineBytes?: number
  /** Says which control group this process is in. @default '/proc/self/cgroup' */
  readonly membership?: string
  /** Where control groups are mounted. @default '/sys/fs/cgroup' */
  readonly groups?: string
}

/**
 * Bytes of memory that may still be taken: what the machine has left, or what a control group of this process (a
 * container's, say, or one around it) leaves of its limit, whichever is less. Cached files count as free, for they give
 * way. A system that does not say sets no limit.
 */
export async function availableMemory(sources: MemorySources = {}): Promise<number> {
  const { machineBytes = freemem(), membership = '/proc/self/cgroup', groups = '/sys/fs/cgroup' } = sources
  let least = machineBytes
  for (const folder of await groupFolders(membership, groups)) least = Math.min(least, await leftInGroup(folder))
  return least
}

/** The process's group and all groups around it. */
async function groupFolders(membership: string, root: string): Promise<string[]> {
  // Version 2 has one line: 0::/path. A path that leads out of the namespace begins with /.. and is not to be seen from
  // here.
  const path = /^0::(\/.*)$/m.exec(await textOf(membership))?.[1] ?? '/'
  const folders: string[] = []
  for (let group = path.startsWith('/..') ? '/' : path; group !== '/'; group = dirname(group))
    folders.push(join(root, group))
  return [...folders, root]
}

async function leftInGroup(folder: string): Promise<number> {
  const [limit, used, statistics] = await Promise.all(
    ['memory.max', 'memory.current', 'memory.stat'].map((file) => textOf(join(folder, file))),
  )
  if (!/^\d+\s*$/.test(limit!)) return Infinity
  const cached = ['inactive_file', 'active_file'].map((name) =>
    Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(statistics!)?.[1] ?? 0),
  )
  return Math.max(0, Number(limit) - Math.max(0, Number(used) - cached[0]! - cached[1]!))
}

async function textOf(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch {
    return ''
  }
}
