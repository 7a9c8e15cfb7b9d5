import { onSoftwareCuda } from '../project.js'

// Those two are of thousands of calls.
export default onSoftwareCuda('low-latency', { exclude: ['test/{repeats,replays}.test.ts'], repeats: 3 })
