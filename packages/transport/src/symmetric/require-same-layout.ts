import { MoeEpError } from '@moe-ep/core'
import type { CollectiveOptions, ProcessGroup } from '../rendezvous/process-group.js'

export interface SameLayoutOptions extends CollectiveOptions {
  /** What is laid out, for the error. */
  readonly label: string
  /** Of the package that lays it out: ranks of different ones may mean different things by the same bytes. */
  readonly version: string
}

/**
 * Compares where things lie in a symmetric payload on all ranks: different sizes may happen to need as many bytes. Collective.
 * @param fields numbers that say where everything lies.
 * @throws ERR_MOE_EP_MISMATCH on all ranks alike, for versions, then for fields; what the group fails with.
 */
export async function requireSameLayout(
  group: ProcessGroup,
  fields: readonly number[],
  { label, version, ...wait }: SameLayoutOptions,
): Promise<void> {
  const own = JSON.stringify([version, fields.join(' ')])
  const said = await group.allGather(Buffer.from(own), { ...wait, label })
  const all = said.map((bytes) => JSON.parse(Buffer.from(bytes).toString()) as [version: string, fields: string])
  const [ofFirst] = all as [(typeof all)[number]]
  const differs = (what: 0 | 1): number => all.findIndex((other) => other[what] !== ofFirst[what])
  const refuse = (why: string): MoeEpError => new MoeEpError('ERR_MOE_EP_MISMATCH', `${label}: ${why}`)
  const stranger = differs(0)
  if (stranger >= 0)
    throw refuse(`rank ${stranger} runs version ${all[stranger]![0]} of its code, rank 0 version ${ofFirst[0]}`)
  const different = differs(1)
  if (different >= 0) throw refuse(`rank ${different} was built with other sizes than rank 0`)
}
