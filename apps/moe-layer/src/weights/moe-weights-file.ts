import { argumentError } from '@moe-ep/core'
import { throwIfAborted } from '../support/abort.js'
import { layerTensorNames, type LayerTensorNames, type MlpTensorNames } from './moe-tensor-names.js'
import type { ExpertWeights } from './moe-weights.js'
import { expectShape, readMatrix } from './read-matrix.js'
import { formatError } from './safetensors-header.js'
import { openSafetensors, type ReadOptions, type SafetensorsFile } from './safetensors-reader.js'

/** How an expert is read. */
export interface ReadExpertOptions extends ReadOptions {
  /** Memory that receives the weights, of their very sizes. @default new memory */
  readonly into?: ExpertWeights
}

/**
 * One layer of a safetensors file with its sizes known and its experts ready to be read one by one: number `layer`, or
 * the first one that has experts. Close it. Whether its tensors are named as Qwen3, DeepSeek-V3 and GLM-4.5 do or as
 * Mixtral does is found out.
 *
 * @throws ERR_MOE_EP_FILE_FORMAT when it has no such layer, and as {@link openSafetensors}.
 */
export async function openMoeWeights(
  path: string,
  { layer }: { layer?: number | undefined } = {},
): Promise<MoeWeightsFile> {
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
  /** Number of the layer in the file's names. */
  readonly layer: number
  /** Intermediate size of the shared expert; 0 where there is none. */
  readonly sharedIntermediate: number
  readonly hasCorrectionBias: boolean
  readonly metadata: Readonly<Record<string, string>>
  readonly #file: SafetensorsFile
  readonly #names: LayerTensorNames

  /** @internal */
  constructor(file: SafetensorsFile, layer: number | undefined) {
    this.#file = file
    this.layer = layer ?? firstLayerIn(file)
    this.#names = namesIn(file, this.layer)
    this.metadata = file.metadata
    const [numExperts, hidden] = this.#shapeOf(this.#names.gate)
    const [intermediate] = this.#shapeOf(this.#names.expert(0).gateProj)
    this.numExperts = numExperts
    this.hidden = hidden
    this.intermediate = intermediate
    const { sharedExpert, correctionBias } = this.#names
    const hasShared = sharedExpert !== undefined && file.tensors.has(sharedExpert.gateProj)
    this.sharedIntermediate = hasShared ? this.#shapeOf(sharedExpert.gateProj)[0] : 0
    this.hasCorrectionBias = correctionBias !== undefined && file.tensors.has(correctionBias)
  }

  get hasSharedExpert(): boolean {
    return this.sharedIntermediate > 0
  }

  /** Throws ERR_MOE_EP_ARGUMENT unless the layer has this expert. */
  checkExpert(expert: number): void {
    if (Number.isInteger(expert) && expert >= 0 && expert < this.numExperts) return
    throw argumentError('expert', `an id from 0 to ${this.numExperts - 1}`, expert)
  }

  /** The gate's weight [E, K]. */
  readGate(options: ReadOptions = {}): Promise<Float32Array> {
    return readMatrix(this.#file, this.#names.gate, { ...options, rows: this.numExperts, columns: this.hidden })
  }

  /** The gate's correction bias [E], if the file has one. */
  async readCorrectionBias(options: ReadOptions = {}): Promise<Float32Array | undefined> {
    if (!this.hasCorrectionBias) return undefined
    const name = this.#names.correctionBias!
    expectShape(this.#file, name, [this.numExperts])
    return this.#file.readFloat32(name, options)
  }

  /** One routed expert's weights. */
  async readExpert(expert: number, options: ReadExpertOptions = {}): Promise<ExpertWeights> {
    this.checkExpert(expert)
    return this.#readMlp(this.#names.expert(expert), this.intermediate, options)
  }

  /** The shared expert's weights, if the file has one. It may have another intermediate size than the routed ones. */
  async readSharedExpert(options: ReadExpertOptions = {}): Promise<ExpertWeights | undefined> {
    if (!this.hasSharedExpert) return undefined
    return this.#readMlp(this.#names.sharedExpert!, this.sharedIntermediate, options)
  }

  /** Closes the file. Closing twice is fine. */
  close(): Promise<void> {
    return this.#file.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #readMlp(names: MlpTensorNames, intermediate: number, options: ReadExpertOptions): Promise<ExpertWeights> {
    const { hidden } = this
    const { into, ...read } = options
    expectShape(this.#file, names.gateProj, [intermediate, hidden])
    expectShape(this.#file, names.upProj, [intermediate, hidden])
    expectShape(this.#file, names.downProj, [hidden, intermediate])
    const elements = intermediate * hidden
    for (const [name, wanted] of [['w13', 2 * elements] as const, ['w2', elements] as const]) {
      const length = into?.[name].length ?? wanted
      if (length !== wanted) throw argumentError(`into.${name}`, `${wanted} elements`, length)
    }
    throwIfAborted(options.signal, 'reading expert weights')
    const w13 = into?.w13 ?? new Float32Array(2 * elements)
    w13.set(await readMatrix(this.#file, names.gateProj, { ...read, rows: intermediate, columns: hidden }))
    w13.set(await readMatrix(this.#file, names.upProj, { ...read, rows: intermediate, columns: hidden }), elements)
    const w2 = await readMatrix(this.#file, names.downProj, { ...read, rows: hidden, columns: intermediate })
    if (into === undefined) return { w13, w2 }
    into.w2.set(w2)
    return into
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

/** The lowest number of a layer with a gate; 0 where there is none, so that the error names what is missing. */
function firstLayerIn(file: SafetensorsFile): number {
  const numbers = Array.from(file.tensors.keys(), (name) => {
    const match = /^model\.layers\.(\d{1,6})\.(mlp|block_sparse_moe)\.gate\.weight$/.exec(name)
    return match === null ? Infinity : Number(match[1])
  })
  const first = numbers.reduce((a, b) => Math.min(a, b), Infinity)
  return first === Infinity ? 0 : first
}

/** The names of the family that has a gate in this layer. */
function namesIn(file: SafetensorsFile, layer: number): LayerTensorNames {
  const mixtral = layerTensorNames('block_sparse_moe', layer)
  return file.tensors.has(mixtral.gate) ? mixtral : layerTensorNames('mlp', layer)
}
