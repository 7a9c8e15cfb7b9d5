export { connect } from './connect.js'
export type { ConnectOptions } from './connect-options.js'
export { type CloseOptions, type CollectiveOptions, ProcessGroup } from './process-group.js'
export { type Topology, type TopologyOptions, createTopology } from './topology.js'
