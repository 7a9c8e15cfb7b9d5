import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('core', {
  exclude: [
    // Builds of core, which are no others here, and copies of its addon, of which there is one here.
    'test/builds.test.ts',
    'test/joined-addons.test.ts',
    // No device is in them.
    'test/{borrowed-buffers,error-codes,float-formats,throwing-loops,wait-options}.test.ts',
  ],
})
