import { argumentError } from '@moe-ep/core'
import { throwIfAborted } from '../support/abort.js'
import type { OnProgress } from '../support/progress.js'
import { expertNames, gateName, type MlpTensorNames, sharedExpertNames } from './moe-tensor-names.js'
import { formatError } from './safetensors-header.js'
import { openSafetensors, type ReadOptions, type SafetensorsFile } from './safetensors-reader.js'

/** One expert's weights widened to f32. */
export interface ExpertWeights {
  /** Gate rows, then up rows: [2I, K]. */
  readonly w13: Float32Array
  /** [K, I]. */
  readonly w2: Float32Array
}

/** The gate and some experts of one layer. */
export interface MoeWeights {
  readonly hidden: number
  readonly intermediate: number
  /** E: all routed experts of the layer, not only those read. */
  readonly numExperts: number
  /** [E, K]. */
  readonly gate: Float32Array
  /** The experts asked for, by id. */
  readonly experts: ReadonlyMap<number, ExpertWeights>
  /** Present when the file has a shared expert and it was asked for. */
  readonly sharedExpert?: ExpertWeights
}

/** Which part of a file to load. */
export interface LoadMoeWeightsOptions extends ReadOptions {
  /** Ids of the experts to read; none is fine. */
  readonly experts: readonly number[]
  /** Whether to read the shared expert, if there is one. @default true */
  readonly sharedExpert?: boolean
  /** @default 0 */
  readonly layer?: number
  /** Hears the experts read so far. */
  readonly onProgress?: OnProgress
}

/**
 * The gate and the named experts of one layer, read from a safetensors file; no other expert's bytes are touched.
 *
 * @throws ERR_MOE_EP_FILE_FORMAT when a tensor is missing or has an unexpected shape, naming it;
 * ERR_MOE_EP_ARGUMENT for an expert that the layer does not have; else as {@link openSafetensors}.
 */
export async function loadMoeWeights(path: string, options: LoadMoeWeightsOptions): Promise<MoeWeights> {
  const { experts: ids, sharedExpert = true, layer = 0, signal, onProgress } = options
  const file = await openMoeWeights(path, { layer })
  try {
    const read = signal === undefined ? {} : { signal }
    const { hidden, intermediate, numExperts } = file
    for (const id of ids) file.checkExpert(id)
    const gate = await file.readGate(read)
    const experts = new Map<number, ExpertWeights>()
    onProgress?.({ done: 0, total: ids.length })
    for (const id of ids) {
      experts.set(id, await file.readExpert(id, read))
      onProgress?.({ done: experts.size, total: ids.length })
    }
    const shared = sharedExpert ? await file.readSharedExpert(read) : undefined
    return { hidden, intermediate, numExperts, gate, experts, ...(shared && { sharedExpert: shared }) }
  } finally {
    await file.close()
  }
}

/** One layer of a safetensors file with its sizes known and its experts ready to be read one by one. Close it. */
export async function openMoeWeights(path: string, { layer = 0 }: { layer?: number } = {}): Promise<MoeWeightsFile> {
  const file = await openSafetensors(path)
  try {
    return new MoeWeightsFile(file, layer)
  } catch (error) {
    await file.close()
    throw error
  }
}

/** An open file with one layer's weights; made by {@link openMoeWeights}. */
export class MoeWeightsFile {
  readonly hidden: number
  readonly intermediate: number
  readonly numExperts: number
  readonly hasSharedExpert: boolean
  readonly metadata: Readonly<Record<string, string>>
  readonly #file: SafetensorsFile
  readonly #layer: number

  /** @internal */
  constructor(file: SafetensorsFile, layer: number) {
    this.#file = file
    this.#layer = layer
    this.metadata = file.metadata
    const [numExperts, hidden] = this.#shapeOf(gateName(layer))
    const [intermediate] = this.#shapeOf(expertNames(layer, 0).gateProj)
    this.numExperts = numExperts
    this.hidden = hidden
    this.intermediate = intermediate
    this.hasSharedExpert = file.tensors.has(sharedExpertNames(layer).gateProj)
  }

  /** Throws ERR_MOE_EP_ARGUMENT unless the layer has this expert. */
  checkExpert(expert: number): void {
    if (Number.isInteger(expert) && expert >= 0 && expert < this.numExperts) return
    throw argumentError('expert', `an id from 0 to ${this.numExperts - 1}`, expert)
  }

  /** The gate's weight [E, K]. */
  readGate(options: ReadOptions = {}): Promise<Float32Array> {
    return this.#file.readFloat32(gateName(this.#layer), options)
  }

  /** One routed expert's weights. */
  async readExpert(expert: number, options: ReadOptions = {}): Promise<ExpertWeights> {
    this.checkExpert(expert)
    return this.#readMlp(expertNames(this.#layer, expert), this.intermediate, options)
  }

  /** The shared expert's weights, if the file has one. It may have another intermediate size than the routed ones. */
  async readSharedExpert(options: ReadOptions = {}): Promise<ExpertWeights | undefined> {
    if (!this.hasSharedExpert) return undefined
    const names = sharedExpertNames(this.#layer)
    return this.#readMlp(names, this.#shapeOf(names.gateProj)[0], options)
  }

  /** Closes the file. Closing twice is fine. */
  close(): Promise<void> {
    return this.#file.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #readMlp(names: MlpTensorNames, intermediate: number, options: ReadOptions): Promise<ExpertWeights> {
    const { hidden } = this
    this.#expectShape(names.gateProj, [intermediate, hidden])
    this.#expectShape(names.upProj, [intermediate, hidden])
    this.#expectShape(names.downProj, [hidden, intermediate])
    throwIfAborted(options.signal, 'reading expert weights')
    const w13 = new Float32Array(2 * intermediate * hidden)
    w13.set(await this.#file.readFloat32(names.gateProj, options))
    w13.set(await this.#file.readFloat32(names.upProj, options), intermediate * hidden)
    return { w13, w2: await this.#file.readFloat32(names.downProj, options) }
  }

  #expectShape(name: string, expected: readonly [number, number]): void {
    const shape = this.#shapeOf(name)
    if (shape[0] === expected[0] && shape[1] === expected[1]) return
    throw formatError(this.#file.path, `tensor ${name} is [${shape.join(', ')}]; expected [${expected.join(', ')}]`)
  }

  /** Both sizes of a matrix that must be there and not empty. */
  #shapeOf(name: string): [number, number] {
    const info = this.#file.tensors.get(name)
    if (info === undefined) throw formatError(this.#file.path, `has no tensor ${name}`)
    const [rows, columns] = info.shape
    if (info.shape.length !== 2 || !rows || !columns) {
      throw formatError(this.#file.path, `tensor ${name} is [${info.shape.join(', ')}]; expected a matrix`)
    }
    return [rows, columns]
  }
}
