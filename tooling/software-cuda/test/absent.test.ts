import { expect, test } from 'vitest'
import { requires } from '../../vitest/requirements.js'

const isThere = requires('a CUDA toolkit', () => 'the software CUDA device is built with its headers')

test.skipIf(!isThere)('suites run on a cuda device that is software', () => expect(isThere).toBe(true))
