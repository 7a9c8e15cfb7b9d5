import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('layout', { repeats: 30 })
