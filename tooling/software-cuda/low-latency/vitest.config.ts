import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('low-latency', {
  exclude: [
    // Of thousands of calls.
    'test/{repeats,replays}.test.ts',
    // They pass, and take half a minute.
    'test/{accuracy,stopped-ranks}.test.ts',
  ],
  repeats: 2,
})
