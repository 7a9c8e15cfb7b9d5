import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('transport', { exclude: ['test/rendezvous/**'] })
