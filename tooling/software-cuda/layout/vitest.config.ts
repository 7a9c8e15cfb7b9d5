import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('layout')
