import { onSoftwareCuda } from '../project.js'

// The software device has less than 4 GiB.
export default onSoftwareCuda('deepgemm-permute', { exclude: ['test/huge-offsets.test.ts'] })
