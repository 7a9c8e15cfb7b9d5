import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('transport', ['test/rendezvous/**'])
