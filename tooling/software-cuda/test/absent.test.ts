import { expect, test } from 'vitest'
import { requires } from '../../vitest/requirements.js'

const isThere = requires('software cuda', () => 'it is built on x86-64, with a CUDA toolkit')

test.skipIf(!isThere)('suites run on a cuda device that is software', () => expect(isThere).toBe(true))
