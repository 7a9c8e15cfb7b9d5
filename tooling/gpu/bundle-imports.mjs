// For `node --import`: packages that are not found from where a script lies are taken from this workspace.
import { register } from 'node:module'

register('./bundle-resolver.mjs', import.meta.url)
