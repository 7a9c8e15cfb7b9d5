import type { Memory } from '@moe-ep/core'
import { native } from '../native.js'
import { type DescriptorExchange, exchangeDescriptors } from './exchange-descriptors.js'

/**
 * Exchanges descriptors among the ranks of this node and maps what came, by rank. Nothing stays open or mapped when that fails.
 * @throws what {@link exchangeDescriptors} and `map` throw.
 */
export async function mapPeers(
  exchange: DescriptorExchange,
  map: (descriptor: number) => Memory,
): Promise<Map<number, Memory>> {
  const descriptors = await exchangeDescriptors(exchange)
  const memories = new Map<number, Memory>()
  try {
    for (const [peer, descriptor] of descriptors) memories.set(peer, map(descriptor))
    return memories
  } catch (error) {
    for (const memory of memories.values()) memory.close()
    throw error
  } finally {
    for (const descriptor of descriptors.values()) native().closeDescriptor(descriptor)
  }
}
