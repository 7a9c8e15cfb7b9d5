import { dtypes, MoeEpError, Tensor } from '@moe-ep/core'
import type { ProcessGroup } from '@moe-ep/transport'

/** Tensors of one rank that all have the same number of rows. */
export interface GatherOptions {
  /** What is gathered; ranks whose labels differ have called different things. */
  readonly label: string
  /** Contiguous, on the cpu, and complete. Ranks may have different numbers of rows. */
  readonly tensors: readonly Tensor[]
}

export interface Gathered {
  /** Each tensor's rows of all ranks, in rank order. */
  readonly tensors: readonly Tensor[]
  /** Rows of each rank. */
  readonly rows: readonly number[]
}

/**
 * All ranks' rows on every rank; collective.
 * @throws ERR_MOE_EP_MISMATCH on all ranks when dtypes, shapes of rows or labels differ; what the group fails with.
 */
export async function gatherTensors(group: ProcessGroup, { label, tensors }: GatherOptions): Promise<Gathered> {
  const form = [label, ...tensors.map(({ dtype, shape }) => `${dtype} [rows, ${shape.slice(1).join(', ')}]`)].join('; ')
  const head = Buffer.from(JSON.stringify({ form, rows: tensors[0]!.shape[0]! }))
  const length = Buffer.alloc(4)
  length.writeUInt32LE(head.length)
  const sent = await group.allGather(Buffer.concat([length, head, ...tensors.map(bytesOf)]))
  const messages = sent.map((message) => {
    const bytes = Buffer.from(message.buffer, message.byteOffset, message.byteLength)
    const end = 4 + bytes.readUInt32LE(0)
    const { form, rows } = JSON.parse(bytes.toString('utf8', 4, end)) as {
      readonly form: string
      readonly rows: number
    }
    return { form, rows, body: bytes.subarray(end) }
  })
  const different = messages.findIndex(({ form: other }) => other !== messages[0]!.form)
  if (different >= 0) {
    throw new MoeEpError(
      'ERR_MOE_EP_MISMATCH',
      `rank ${different} passed "${messages[different]!.form}", rank 0 "${messages[0]!.form}"`,
    )
  }
  const rows = messages.map((message) => message.rows)
  const total = rows.reduce((sum, count) => sum + count, 0)
  const offsets = rows.map(() => 0)
  const gathered = tensors.map(({ dtype, shape, device }) => {
    const columns = shape.slice(1)
    const rowBytes = (columns.reduce((all, size) => all * size, 1) * dtypes[dtype].bits) / 8
    const whole = Tensor.zeros([total, ...columns], dtype, device)
    const target = bytesOf(whole)
    let end = 0
    for (const [rank, { body }] of messages.entries()) {
      const bytes = rows[rank]! * rowBytes
      target.set(body.subarray(offsets[rank]!, offsets[rank]! + bytes), end)
      offsets[rank]! += bytes
      end += bytes
    }
    return whole
  })
  return { tensors: gathered, rows }
}

function bytesOf(tensor: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = tensor.data
  return new Uint8Array(buffer, byteOffset, byteLength)
}
