import { expect, test } from 'vitest'
import { getDefaultDevice, MoeEpError, requireAligned, Tensor } from '../src/index.js'

const device = getDefaultDevice()

test('rows of a GPU begin at multiples of 16 bytes', () => {
  const rows = (address: bigint): Tensor => ({ device: { kind: 'cuda' }, pointer: address }) as unknown as Tensor
  for (const address of [0n, 16n, 4096n]) requireAligned('x', rows(address))
  for (const address of [2n, 8n, 4100n]) expect(() => requireAligned('x', rows(address))).toThrow(MoeEpError)
})

test('rows of the cpu begin anywhere; those of a device are looked at where they lie', () => {
  const { memory } = Tensor.zeros([17], 'bf16', device)
  const odd = new Tensor({ memory, dtype: 'bf16', shape: [2, 8], byteOffset: 2 })
  if (device.kind === 'cpu') requireAligned('x', odd)
  else expect(() => requireAligned('x', odd)).toThrow(MoeEpError)
})
