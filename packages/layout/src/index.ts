export { type ExpertPlacement, expertMapOf, linearPlacement } from './expert-placement.js'
export { type DispatchLayout, type DispatchLayoutOptions, getDispatchLayout, maxTopk } from './get-dispatch-layout.js'
export { defaultNumChannels, getChannelPrefixMatrix, getRankPrefixMatrix } from './prefix-matrices.js'
export * as reference from './reference.js'
