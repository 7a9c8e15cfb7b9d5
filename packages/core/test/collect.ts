import v8 from 'node:v8'
import vm from 'node:vm'
import { setImmediate as turn } from 'node:timers/promises'

v8.setFlagsFromString('--expose-gc')
export const collect = vm.runInNewContext('gc') as () => void

/** Lets go of all handles that nothing refers to. */
export async function collectHandles(): Promise<void> {
  for (let i = 0; i < 3; i++) {
    collect()
    await turn()
  }
}
