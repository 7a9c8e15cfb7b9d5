import { MoeEpError } from '@moe-ep/core'
import type { CollectiveOptions, ProcessGroup } from '../rendezvous/process-group.js'

/**
 * Compares where things lie in a symmetric payload on all ranks: different sizes may happen to need as many bytes. Collective.
 * @param fields numbers that say where everything lies.
 * @throws ERR_MOE_EP_MISMATCH on all ranks alike; what the group fails with.
 */
export async function requireSameLayout(
  group: ProcessGroup,
  fields: readonly number[],
  wait: CollectiveOptions & { readonly label: string },
): Promise<void> {
  const all = (await group.allGather(Buffer.from(fields.join(' ')), wait)).map((bytes) => Buffer.from(bytes).toString())
  const different = all.findIndex((others) => others !== all[0])
  if (different < 0) return
  throw new MoeEpError('ERR_MOE_EP_MISMATCH', `${wait.label}: rank ${different} was built with other sizes than rank 0`)
}
