import type { Operation } from './operation.js'

const bytesPerRank = 1024

/** Over sockets, from JavaScript: from the call until its promise resolves. */
export const allGather: Operation = async ({ group }) => {
  const own = new Uint8Array(bytesPerRank).fill(group.rank + 1)
  let last: Uint8Array[] = []
  return {
    ...{ bytes: 0, ceilings: [] },
    rule: `${bytesPerRank} bytes from each rank to all; from the call until its promise resolves`,
    subject: {
      ...{ name: 'allGather', sets: 1 },
      async time() {
        const began = performance.now()
        last = await group.allGather(own)
        return (performance.now() - began) * 1000
      },
    },
    check() {
      const right =
        last.length === group.worldSize &&
        last.every((bytes, rank) => bytes.length === bytesPerRank && bytes[7] === ((rank + 1) & 255))
      return right ? undefined : 'a rank received other bytes than were sent'
    },
  }
}

export const barrier: Operation = async ({ group }) => ({
  ...{ bytes: 0, ceilings: [] },
  rule: 'from the call until its promise resolves',
  subject: {
    ...{ name: 'barrier', sets: 1 },
    async time() {
      const began = performance.now()
      await group.barrier()
      return (performance.now() - began) * 1000
    },
  },
  check: () => undefined,
})
