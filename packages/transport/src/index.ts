export type { RoutesHandle } from './native.js'
export * from './rendezvous/index.js'
export { type Region, RegionLayout } from './symmetric/region-layout.js'
export type { SharingChoice } from './symmetric/agreement.js'
export type { Sharing } from './symmetric/shared-segments.js'
export { requireSameLayout, type SameLayoutOptions } from './symmetric/require-same-layout.js'
export { type Lease, SlotRing } from './symmetric/slot-ring.js'
export {
  type PeerTarget,
  type Put,
  type PutAllOptions,
  type RouteKind,
  SymmetricMemory,
  type SymmetricMemoryOptions,
} from './symmetric/symmetric-memory.js'
