import { argumentError, type Device, type Event, type Memory, type Stream, Tensor } from '@moe-ep/core'
import { bytesOfSpec, type TensorSpec, type Workspaces, type WorkspaceShapes } from '@moe-ep/experts'

type Region = 'common' | 'workspace2' | 'output'

/** Memory that only grows, of one device and micro-batch. */
interface Scratch {
  readonly memory: Map<Region, Memory>
  /** End of the work that used it last. */
  last: Event | undefined
  inUse: boolean
}

/** Who asks for scratch. */
export interface WorkspaceOwner {
  readonly device: Device
  readonly microBatch: number
  /** Stream of the work that will use it: it is ordered after the last user's. */
  readonly stream: Stream
}

/** Scratch of one layer, until `leave`. */
export interface WorkspaceLease {
  /** Scratch with the output on top of `workspace13`: for experts that run once. */
  takeAll(shapes: WorkspaceShapes): Workspaces & { readonly output: Tensor }
  /** Scratch alone. */
  takeScratch(shapes: WorkspaceShapes): Workspaces
  /** An output that lies apart from all scratch: for experts that run several times. */
  takeOutput(spec: TensorSpec): Tensor
  /** Ends the lease. What was enqueued on the stream so far may still use the memory. */
  leave(): void
}

/**
 * Scratch memory for layers, kept from call to call: one set for each device and micro-batch, as large as the largest call so far.
 */
export class WorkspaceManager {
  readonly #scratch = new Map<Device, Map<number, Scratch>>()

  /** Bytes that are kept. */
  get byteLength(): number {
    const all = [...this.#scratch.values()].flatMap((batches) => [...batches.values()])
    return all.flatMap(({ memory }) => [...memory.values()]).reduce((sum, { byteLength }) => sum + byteLength, 0)
  }

  /** @throws ERR_MOE_EP_ARGUMENT when another layer of this micro-batch is still running. */
  enter({ device, microBatch, stream }: WorkspaceOwner): WorkspaceLease {
    const scratch = this.#scratchOf(device, microBatch)
    if (scratch.inUse) throw argumentError('microBatch', 'one whose layer has ended', microBatch)
    scratch.inUse = true
    if (scratch.last !== undefined) stream.follow(scratch.last)
    const view = (region: Region, bytes: number, spec: TensorSpec): Tensor => {
      let memory = scratch.memory.get(region)
      if (memory === undefined || memory.byteLength < bytes) {
        // Queued work keeps the smaller memory until it is done.
        memory = device.allocate(bytes)
        scratch.memory.set(region, memory)
      }
      return new Tensor({ memory, ...spec })
    }
    const takeWith = (shapes: WorkspaceShapes, outputBytes: number): Workspaces => ({
      workspace13: view('common', Math.max(bytesOfSpec(shapes.workspace13), outputBytes), shapes.workspace13),
      workspace2: view('workspace2', bytesOfSpec(shapes.workspace2), shapes.workspace2),
    })
    return {
      takeAll(shapes) {
        const workspaces = takeWith(shapes, bytesOfSpec(shapes.output))
        return { ...workspaces, output: new Tensor({ memory: workspaces.workspace13.memory, ...shapes.output }) }
      },
      takeScratch: (shapes) => takeWith(shapes, 0),
      takeOutput: (spec) => view('output', bytesOfSpec(spec), spec),
      leave() {
        scratch.inUse = false
        if (!stream.closed) scratch.last = stream.record()
      },
    }
  }

  #scratchOf(device: Device, microBatch: number): Scratch {
    let batches = this.#scratch.get(device)
    if (batches === undefined) this.#scratch.set(device, (batches = new Map<number, Scratch>()))
    let scratch = batches.get(microBatch)
    if (scratch === undefined) batches.set(microBatch, (scratch = { memory: new Map(), last: undefined, inUse: false }))
    return scratch
  }
}
