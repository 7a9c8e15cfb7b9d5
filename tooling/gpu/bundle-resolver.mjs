/** Modules that see, between them, all packages of the workspace (the umbrella depends on each) and the test tools. */
const parents = ['../../packages/moe-ep/package.json', '../../package.json']

/** Node's hook: resolves as usual, and where a package is not found, as if the workspace's own modules had imported it. */
export async function resolve(specifier, context, next) {
  try {
    return await next(specifier, context)
  } catch (error) {
    if (error.code !== 'ERR_MODULE_NOT_FOUND' || /^([./]|[a-z]+:)/i.test(specifier)) throw error
    for (const parent of parents) {
      try {
        return await next(specifier, { ...context, parentURL: new URL(parent, import.meta.url).href })
      } catch {
        // Not there either. The first error is the one that names the script.
      }
    }
    throw error
  }
}
