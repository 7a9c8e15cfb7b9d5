import { createRequire } from 'node:module'
import { fileURLToPath } from 'node:url'
import { MoeEpError } from './error.js'

/** Which addon to load, and from where. */
export interface AddonLocation {
  /** npm name, such as `@moe-ep/layout`. */
  readonly packageName: string
  /** File name without `.node`. */
  readonly addonName: string
  /** `import.meta.url` of a module one level below the package's folder (`src/` or `dist/`). */
  readonly moduleUrl: string
}

/** Platforms that have native devices. Elsewhere only the reference is there. */
const nativePlatforms = ['linux-x64', 'linux-arm64']

/** Why this platform has no native devices, or undefined where it has. */
export function unsupportedPlatform(): string | undefined {
  const platform = `${process.platform}-${process.arch}`
  if (nativePlatforms.includes(platform)) return undefined
  return `native devices exist on ${nativePlatforms.join(' and ')}, this is ${platform}; only the reference is available`
}

/**
 * Loads `<package>/prebuilds/<platform>-<arch>/<addon>.node`, else the same file of `<package>-<platform>-<arch>`.
 * @throws ERR_MOE_EP_NATIVE_LOAD with the paths tried and what to do.
 */
export function loadAddon<Addon>({ packageName, addonName, moduleUrl }: AddonLocation): { addon: Addon; path: string } {
  const platform = `${process.platform}-${process.arch}`
  const unsupported = unsupportedPlatform()
  if (unsupported !== undefined) throw new MoeEpError('ERR_MOE_EP_NATIVE_LOAD', `${packageName}: ${unsupported}`)
  const require = createRequire(moduleUrl)
  const candidates = [
    fileURLToPath(new URL(`../prebuilds/${platform}/${addonName}.node`, moduleUrl)),
    `${packageName}-${platform}/${addonName}.node`,
  ]
  const failures: Error[] = []
  for (const candidate of candidates) {
    try {
      return { addon: require(candidate) as Addon, path: require.resolve(candidate) }
    } catch (error) {
      failures.push(error as Error)
    }
  }
  throw new MoeEpError(
    'ERR_MOE_EP_NATIVE_LOAD',
    `cannot load the native part of ${packageName} for ${platform}:\n` +
      candidates.map((candidate, i) => `  ${candidate}: ${failures[i]!.message.split('\n')[0]}`).join('\n') +
      `\nReinstall ${packageName}; in a checkout of the repository run: npm run build`,
    { cause: failures[0] },
  )
}
