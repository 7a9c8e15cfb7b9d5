import { onSoftwareCuda } from '../project.js'

// Where a test does much the same some times over, with other formats, it does it once.
export default onSoftwareCuda('quant', { repeats: 1 })
