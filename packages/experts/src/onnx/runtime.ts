import type * as onnxruntime from 'onnxruntime-node'
import { MoeEpError } from '@moe-ep/core'

/** The parts of onnxruntime-node that an engine uses. */
export type OnnxRuntime = Pick<typeof onnxruntime, 'InferenceSession' | 'Tensor'>

/**
 * Keeps onnxruntime from sending telemetry to its makers, and from leaving files for that in the temporary folder: its builds do both
 * from 1.29 on. Who wants it sets ORT_DISABLE_TELEMETRY to 0. The runtime reads the environment of the process, which a worker thread
 * cannot write: with workers, call this (or set the variable) in the main thread before.
 */
export function disableOnnxTelemetry(): void {
  process.env['ORT_DISABLE_TELEMETRY'] ??= '1'
}

/**
 * onnxruntime-node, loaded at the first call: who never runs an engine never loads it.
 *
 * @param importModule how to import it; tests replace it.
 * @throws ERR_MOE_EP_UNSUPPORTED when the package is not installed, ERR_MOE_EP_NATIVE_LOAD when it is but cannot start.
 */
export async function loadOnnxRuntime(
  importModule: () => Promise<OnnxRuntime> = () => import('onnxruntime-node'),
): Promise<OnnxRuntime> {
  disableOnnxTelemetry()
  try {
    return await importModule()
  } catch (error) {
    if (isMissing(error)) {
      throw new MoeEpError(
        'ERR_MOE_EP_UNSUPPORTED',
        'expert GEMMs on the cpu device need the optional package onnxruntime-node: npm i onnxruntime-node',
        { cause: error, details: { package: 'onnxruntime-node' } },
      )
    }
    throw new MoeEpError(
      'ERR_MOE_EP_NATIVE_LOAD',
      `onnxruntime-node is installed but does not load on ${process.platform}-${process.arch}: ${String(error)}`,
      { cause: error, details: { package: 'onnxruntime-node' } },
    )
  }
}

/** Whether the package itself is not there. Its missing parts (its binary, a dependency) are load failures instead. */
function isMissing(error: unknown): boolean {
  if (!(error instanceof Error)) return false
  const { code } = error as NodeJS.ErrnoException
  return (code === 'ERR_MODULE_NOT_FOUND' || code === 'MODULE_NOT_FOUND') && /'onnxruntime-node'/.test(error.message)
}
