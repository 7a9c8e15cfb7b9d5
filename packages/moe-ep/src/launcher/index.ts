export { launch } from './launch.js'
export type { LaunchOptions, LaunchOutput, OutputStream } from './launch-options.js'
export { type LaunchResult, type RankResult, assertLaunched } from './launch-result.js'
