import { onSoftwareCuda } from '../project.js'

export default onSoftwareCuda('intranode-ht', {
  exclude: [
    // Of thousands of calls.
    'test/{determinism,replays}.test.ts',
    // They pass, and take minutes.
    'test/{leases,ranks,refusals,refused-combine,refused-dispatch,streaming}.test.ts',
  ],
  repeats: 2,
})
