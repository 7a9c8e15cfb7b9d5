import { argumentError, type Device, requireTensor } from '@moe-ep/core'
import type { LowLatencyDispatchOptions } from './call-types.js'

/**
 * How rows travel, and what experts receive. N = R * maxTokensPerRank, L experts of the rank:
 *
 * - `'bf16'`: as they are, without scales.
 * - `'fp8'`: fp8e4m3 with a scale for 128 elements; see `roundScale` and `useUe8m0` for those. hidden is a multiple of 16.
 * - `'mxfp8'`: fp8e4m3 with e8m0 scales [L, N, ceil(hidden / 32)], row-major: quant's `quantizeMxfp8` (rule `'ocp'`). hidden is a
 *   multiple of 16.
 * - `'nvfp4'`: fp4e2m1 with fp8e4m3 scales [L, N, hidden / 16], row-major: quant's `quantizeNvfp4` with `xGlobalScale`. hidden is a
 *   multiple of 32.
 */
export type RowFormatName = 'bf16' | 'fp8' | 'mxfp8' | 'nvfp4'

/** A format with all that its options say. */
export interface RowFormat {
  readonly name: RowFormatName
  /** Scales of fp8 are packed exponents. */
  readonly packedScales: boolean
  /** RowFormat of native/row_format.h. */
  readonly code: number
  /** What hidden is a multiple of, so that rows are whole vectors of 16 bytes. */
  readonly hiddenMultiple: 8 | 16 | 32
}

const formats = {
  bf16: { code: 0, hiddenMultiple: 8 },
  fp8: { code: 1, hiddenMultiple: 16 },
  mxfp8: { code: 3, hiddenMultiple: 16 },
  nvfp4: { code: 4, hiddenMultiple: 32 },
} as const
const powersOfTwo = 2

/** @throws ERR_MOE_EP_ARGUMENT for options that contradict each other. */
export function rowFormatOf(options: LowLatencyDispatchOptions): RowFormat {
  const { format, useFp8, useUe8m0 = false, roundScale = useUe8m0 } = options
  if (format !== undefined && !Object.hasOwn(formats, format))
    throw argumentError('format', `one of ${Object.keys(formats).join(', ')}`, format)
  const name = format ?? (useFp8 === false ? 'bf16' : 'fp8')
  const isFp8 = name === 'fp8'
  if (format !== undefined && useFp8 !== undefined && name !== (useFp8 ? 'fp8' : 'bf16'))
    throw argumentError('useFp8', `nothing beside format '${format}'`, useFp8)
  if (format !== undefined && roundScale && !isFp8)
    throw argumentError(useUe8m0 ? 'useUe8m0' : 'roundScale', `false with format '${format}'`, true)
  if (useUe8m0 && !(isFp8 && roundScale))
    throw argumentError('useUe8m0', 'false without useFp8 and roundScale', useUe8m0)
  const { code, hiddenMultiple } = formats[name]
  return { name, packedScales: useUe8m0, code: isFp8 && roundScale ? powersOfTwo : code, hiddenMultiple }
}

/** @throws ERR_MOE_EP_ARGUMENT unless NVFP4, and nothing else, has a global scale. */
export function checkGlobalScale({ name }: RowFormat, options: LowLatencyDispatchOptions, device: Device): void {
  const { xGlobalScale } = options
  if (name === 'nvfp4') {
    if (xGlobalScale === undefined) throw argumentError('xGlobalScale', "a Tensor with format 'nvfp4'", xGlobalScale)
    requireTensor('xGlobalScale', xGlobalScale, { dtype: 'f32', shape: [1], device })
  } else if (xGlobalScale !== undefined) {
    throw argumentError('xGlobalScale', "nothing without format 'nvfp4'", xGlobalScale)
  }
}
