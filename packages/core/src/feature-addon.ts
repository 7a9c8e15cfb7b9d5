import { type AddonLocation, loadAddon } from './load-addon.js'
import { native, type NativeHandle } from './native.js'
import { wrapFunctions } from './wrap-functions.js'

interface NeedsCore {
  initialize(coreApi: NativeHandle<'coreApi'>): void
}

/**
 * A function that gives the addon of a feature package, loaded at first use and joined to core's streams and memory.
 * Errors that the addon throws with one of our codes come out as {@link MoeEpError}.
 */
export function featureAddon<Addon extends object>(location: AddonLocation): () => Addon {
  let loaded: Addon | undefined
  return () => {
    if (loaded === undefined) {
      const core = native()
      const { addon } = loadAddon<Addon & NeedsCore>(location)
      const wrapped = wrapFunctions(addon)
      wrapped.initialize(core.coreApi)
      loaded = wrapped
    }
    return loaded
  }
}
