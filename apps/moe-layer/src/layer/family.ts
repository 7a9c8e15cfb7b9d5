import { type Device, getCudaDeviceOfRank, getDevice } from '@moe-ep/core'
import { BatchedExperts, type Experts, GroupedExperts, onnxEngines } from '@moe-ep/experts'
import { IntranodeBuffer } from '@moe-ep/intranode-ht'
import { LowLatencyBuffer } from '@moe-ep/low-latency'
import { HtPrepareAndFinalize, LlPrepareAndFinalize, type PrepareAndFinalize } from '@moe-ep/modular-kernel'
import type { ProcessGroup } from '@moe-ep/transport'
import { intranodeSizes, lowLatencySizes, maxTokensAtATime } from './buffer-sizes.js'
import type { RunSpec } from './run-spec.js'
import { ThroughHost } from './through-host.js'

/** What moves rows in a mode, and experts that take what it delivers. */
export interface Family {
  readonly device: Device
  readonly prepareAndFinalize: PrepareAndFinalize
  readonly experts: Experts
  /** Call it when the streams that used it have ended. */
  close(): Promise<void>
}

/** The family that the options name, on this rank's device; collective. */
export function createFamily(spec: RunSpec, group: ProcessGroup): Promise<Family> {
  return spec.options.mode === 'll' ? lowLatency(spec, group) : highThroughput(spec, group)
}

async function highThroughput({ shape, options }: RunSpec, group: ProcessGroup): Promise<Family> {
  const device = deviceOfRank(options, group)
  const { timeoutMs, overlap } = options
  const buffer = await IntranodeBuffer.create(group, { ...intranodeSizes(shape, options), device, timeoutMs })
  // On the layer's stream the experts of one micro-batch would wait for the rows of the next.
  const commStream = overlap > 1 ? device.createStream() : undefined
  return {
    device,
    prepareAndFinalize: new HtPrepareAndFinalize(buffer, { ...quantOf(options), ...(commStream && { commStream }) }),
    experts: onDevice(device, new GroupedExperts(onnxEngines())),
    async close() {
      await commStream?.close()
      buffer.close()
    },
  }
}

/** Without a stream of its own: what it sends waits for nobody, and micro-batches receive when the others have sent. */
async function lowLatency({ shape, options }: RunSpec, group: ProcessGroup): Promise<Family> {
  const device = deviceOfRank(options, group)
  const { timeoutMs } = options
  const buffer = await LowLatencyBuffer.create(group, { ...lowLatencySizes(shape, options), device, timeoutMs })
  const sizes = { maxNumTokens: Math.max(1, maxTokensAtATime(options)), numDispatchers: group.worldSize }
  return {
    device,
    prepareAndFinalize: new LlPrepareAndFinalize(buffer, quantOf(options)),
    experts: onDevice(device, new BatchedExperts(onnxEngines(), sizes)),
    async close() {
      buffer.close()
    },
  }
}

function quantOf({ dtype }: RunSpec['options']): { readonly quant?: { readonly kind: 'fp8-block' } } {
  return dtype === 'fp8' ? { quant: { kind: 'fp8-block' } } : {}
}

function onDevice(device: Device, experts: Experts): Experts {
  return device.kind === 'cpu' ? experts : new ThroughHost(experts)
}

function deviceOfRank({ device, shareGpus }: RunSpec['options'], { rank, worldSize }: ProcessGroup): Device {
  if (device === 'cpu') return getDevice('cpu')
  return getCudaDeviceOfRank({ localRank: rank, localWorldSize: worldSize, shareGpus })
}
