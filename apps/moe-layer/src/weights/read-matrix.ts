import { dequantizeBlocks, type MatrixSizes, scaleShape } from './block-quantization.js'
import { scaleName } from './moe-tensor-names.js'
import { formatError } from './safetensors-header.js'
import type { ReadOptions, SafetensorsFile } from './safetensors-reader.js'

/** Throws ERR_MOE_EP_FILE_FORMAT unless the file has the tensor with this very shape. */
export function expectShape(file: SafetensorsFile, name: string, expected: readonly number[]): void {
  const shape = file.tensors.get(name)?.shape
  if (shape === undefined) throw formatError(file.path, `has no tensor ${name}`)
  if (shape.length === expected.length && shape.every((size, i) => size === expected[i])) return
  throw formatError(file.path, `tensor ${name} is [${shape.join(', ')}]; expected [${expected.join(', ')}]`)
}

/**
 * The f32 values of a matrix that is stored as F32, BF16, F16, or as F8_E4M3 with the scales of its 128 x 128 blocks
 * (F32, BF16 or F16) in a tensor beside it.
 *
 * @throws ERR_MOE_EP_FILE_FORMAT when a tensor is missing or has another shape or dtype, naming it; else as the file's
 * read.
 */
export async function readMatrix(
  file: SafetensorsFile,
  name: string,
  { rows, columns, ...options }: MatrixSizes & ReadOptions,
): Promise<Float32Array> {
  expectShape(file, name, [rows, columns])
  if (file.tensors.get(name)!.dtype !== 'F8_E4M3') return file.readFloat32(name, options)
  expectShape(file, scaleName(name), scaleShape({ rows, columns }))
  const scales = await file.readFloat32(scaleName(name), options)
  const { bytes: bits } = await file.read(name, options)
  return dequantizeBlocks({ bits, scales }, { rows, columns })
}
