import { decode, encode } from './convert.js'
import type { AllocateOptions, Device } from './device.js'
import { getDefaultDevice, getDevice } from './devices.js'
import { byteLengthOf, type DType, dtypes, isDType, type StorageArray } from './dtype.js'
import { argumentError, MoeEpError } from './error.js'
import { type Memory, wrapArrayBuffer } from './memory.js'
import { native, type TensorHandle } from './native.js'
import type { Stream } from './stream.js'

/** Most dimensions a tensor can have. */
export const maxDimensions = 6

/** Where and how a tensor is stored. */
export interface TensorOptions {
  readonly memory: Memory
  readonly dtype: DType
  readonly shape: readonly number[]
  /** In elements; contiguous row-major when absent. */
  readonly strides?: readonly number[]
  /** Bytes from the start of `memory`. */
  readonly byteOffset?: number
}

/** A typed, strided view of device memory. */
export class Tensor {
  readonly memory: Memory
  readonly dtype: DType
  readonly shape: readonly number[]
  readonly strides: readonly number[]
  readonly byteOffset: number
  /** Number of elements. */
  readonly numel: number
  /** Whether the elements lie in row-major order without gaps. */
  readonly isContiguous: boolean
  /** Bytes from the first element to the end of the last one, gaps included. */
  readonly spanBytes: number
  #handle: TensorHandle | undefined

  /** @throws ERR_MOE_EP_ARGUMENT when the view does not lie inside the memory, or not at a multiple of the element size. */
  constructor(options: TensorOptions) {
    const { memory, dtype, shape, byteOffset = 0 } = options
    if (!isDType(dtype)) throw argumentError('dtype', `one of ${Object.keys(dtypes).join(', ')}`, dtype)
    requireShape(shape)
    const dense = contiguousStrides(shape)
    const strides = options.strides ?? dense
    if (strides.length !== shape.length || !strides.every((stride) => Number.isSafeInteger(stride) && stride >= 0)) {
      throw argumentError('strides', `${shape.length} numbers of elements`, strides)
    }
    if (!Number.isSafeInteger(byteOffset) || byteOffset < 0)
      throw argumentError('byteOffset', 'bytes, 0 or more', byteOffset)
    const elementBytes = Math.max(1, dtypes[dtype].bits / 8)
    if (byteOffset % elementBytes !== 0) throw argumentError('byteOffset', `a multiple of ${elementBytes}`, byteOffset)
    const numel = product(shape)
    const last = numel === 0 ? 0 : shape.reduce((sum, size, d) => sum + (size - 1) * strides[d]!, 1)
    const spanBytes = Math.ceil((last * dtypes[dtype].bits) / 8)
    const end = byteOffset + spanBytes
    if (end > memory.byteLength) {
      throw argumentError(
        'shape',
        `a view inside ${memory.byteLength} bytes`,
        `${dtype} ${format(shape)}, which ends at byte ${end}`,
      )
    }
    this.memory = memory
    this.dtype = dtype
    this.shape = Object.freeze([...shape])
    this.strides = Object.freeze([...strides])
    this.byteOffset = byteOffset
    // Checks of operations ask for these with every call.
    this.numel = numel
    this.isContiguous = numel === 0 || shape.every((size, d) => size === 1 || strides[d] === dense[d])
    this.spanBytes = spanBytes
  }

  /**
   * A new zeroed tensor, on the default device unless one is named.
   * @param options.stream on cuda, zeroed in the order of this stream; else zero when the call returns.
   */
  static zeros(
    shape: readonly number[],
    dtype: DType,
    device: Device = getDefaultDevice(),
    options: Pick<AllocateOptions, 'stream'> = {},
  ): Tensor {
    requireShape(shape)
    return new Tensor({ memory: device.allocate(byteLengthOf(dtype, product(shape)), options), dtype, shape })
  }

  /** A new tensor whose elements are anything: for results that are written completely. */
  static empty(shape: readonly number[], dtype: DType, device: Device = getDefaultDevice()): Tensor {
    requireShape(shape)
    return new Tensor({ memory: device.allocate(byteLengthOf(dtype, product(shape)), { zeroed: false }), dtype, shape })
  }

  /** A new tensor of these numbers in row-major order, rounded to nearest even. */
  static from(
    values: ArrayLike<number | bigint>,
    shape: readonly number[],
    dtype: DType,
    device: Device = getDefaultDevice(),
  ): Tensor {
    requireShape(shape)
    if (values.length !== product(shape))
      throw argumentError('values', `${product(shape)} numbers for ${format(shape)}`, values.length)
    const stored = encode(dtype, values)
    return device.kind === 'cpu'
      ? Tensor.wrap(stored, shape, dtype, device)
      : Tensor.copyOf(stored, shape, dtype, device)
  }

  /** A tensor over the caller's own typed array in storage form (bf16: Uint16Array, fp8: Uint8Array, ...), without a copy. */
  static wrap(
    stored: ArrayBufferView,
    shape: readonly number[],
    dtype: DType,
    device: Device = getDevice('cpu'),
  ): Tensor {
    return new Tensor({ memory: wrapArrayBuffer(device, stored), dtype, shape })
  }

  /**
   * A new tensor with the elements of a typed array in storage form, on any device. They are there when the call returns.
   * @throws ERR_MOE_EP_ARGUMENT when the array has other bytes than the shape asks for.
   */
  static copyOf(
    stored: ArrayBufferView,
    shape: readonly number[],
    dtype: DType,
    device: Device = getDefaultDevice(),
  ): Tensor {
    const tensor = Tensor.empty(shape, dtype, device)
    if (stored.byteLength !== tensor.byteLength)
      throw argumentError('stored', `${tensor.byteLength} bytes for ${tensor}`, stored.byteLength)
    if (stored.byteLength === 0) return tensor
    if (device.kind === 'cuda') {
      native().cudaUpload(tensor.memory.handle, 0, stored)
    } else {
      const { buffer, byteOffset } = tensor.data
      new Uint8Array(buffer, byteOffset, stored.byteLength).set(
        new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength),
      )
    }
    return tensor
  }

  get device(): Device {
    return this.memory.device
  }

  /** Bytes of the elements when stored contiguously. */
  get byteLength(): number {
    return byteLengthOf(this.dtype, this.numel)
  }

  /** Address of the first element. */
  get pointer(): bigint {
    return this.memory.pointer + BigInt(this.byteOffset)
  }

  /** Native handle that operations take. */
  get handle(): TensorHandle {
    return (this.#handle ??= native().createTensor(
      this.memory.handle,
      this.byteOffset,
      dtypes[this.dtype].code,
      this.shape,
      this.strides,
    ))
  }

  /**
   * The stored elements, without a copy (contiguous cpu tensors). Await the stream that writes them first.
   * @throws ERR_MOE_EP_ARGUMENT when not contiguous; ERR_MOE_EP_RELEASED; ERR_MOE_EP_UNSUPPORTED when the bytes are more than an
   * ArrayBuffer can hold, or on a cuda device: see {@link read}.
   */
  get data(): StorageArray {
    this.#requireContiguous('data')
    const { storage: Storage } = dtypes[this.dtype]
    const length = this.byteLength / Storage.BYTES_PER_ELEMENT
    const { buffer, byteOffset } = this.memory.range(length === 0 ? 0 : this.byteOffset, this.byteLength)
    return new Storage(buffer, byteOffset, length)
  }

  /**
   * The elements in storage form, copied to the host behind all work enqueued so far (contiguous tensors, any device).
   * @param options.stream whose work is waited for. @default the device's default stream
   * @throws the failure of that work; ERR_MOE_EP_ARGUMENT, ERR_MOE_EP_RELEASED.
   */
  async read(options: { readonly stream?: Stream } = {}): Promise<StorageArray> {
    this.#requireContiguous('read')
    const { stream = this.device.defaultStream } = options
    const { storage: Storage } = dtypes[this.dtype]
    const copy = new Storage(this.byteLength / Storage.BYTES_PER_ELEMENT)
    const host = Tensor.wrap(copy, this.shape, this.dtype)
    native().copy(stream.handle, this.handle, host.handle)
    await stream.synchronize()
    return copy
  }

  /** The elements as numbers, copied to the host as {@link read} does. */
  async readNumbers(options: { readonly stream?: Stream } = {}): Promise<ReturnType<Tensor['toNumbers']>> {
    return decode(this.dtype, await this.read(options))
  }

  /** The elements as numbers, copied (contiguous cpu tensors). */
  toNumbers(): Float32Array | Int32Array | Float64Array | Uint8Array {
    return decode(this.dtype, this.data)
  }

  /** The same memory with another shape of as many elements. */
  reshape(shape: readonly number[]): Tensor {
    this.#requireContiguous('reshape')
    requireShape(shape)
    if (product(shape) !== this.numel) throw argumentError('shape', `${this.numel} elements`, shape)
    return new Tensor({ memory: this.memory, dtype: this.dtype, shape, byteOffset: this.byteOffset })
  }

  /** Rows [begin, end) of the first dimension, without a copy. */
  slice(begin: number, end: number): Tensor {
    const [rows] = this.shape
    if (rows === undefined) throw argumentError('this', 'a tensor with dimensions', format(this.shape))
    if (!Number.isInteger(begin) || !Number.isInteger(end) || begin < 0 || end < begin || end > rows) {
      throw argumentError('range', `0 <= begin <= end <= ${rows}`, [begin, end])
    }
    const offset = (begin * this.strides[0]! * dtypes[this.dtype].bits) / 8
    return new Tensor({
      memory: this.memory,
      dtype: this.dtype,
      shape: [end - begin, ...this.shape.slice(1)],
      strides: this.strides,
      byteOffset: this.byteOffset + (begin === end ? 0 : offset),
    })
  }

  toString(): string {
    return `${this.dtype} ${format(this.shape)} on ${this.device}`
  }

  #requireContiguous(what: string): void {
    if (!this.isContiguous) throw argumentError(what, 'a contiguous tensor', `strides ${format(this.strides)}`)
    if (this.memory.closed) throw new MoeEpError('ERR_MOE_EP_RELEASED', "the tensor's memory was closed")
  }
}

/** Strides of a row-major tensor, in elements. */
export function contiguousStrides(shape: readonly number[]): number[] {
  const strides: number[] = new Array(shape.length)
  let stride = 1
  for (let d = shape.length - 1; d >= 0; d--) {
    strides[d] = stride
    stride *= shape[d]!
  }
  return strides
}

function product(shape: readonly number[]): number {
  return shape.reduce((all, size) => all * size, 1)
}

function requireShape(shape: readonly number[]): void {
  const valid = Array.isArray(shape) && shape.every((size) => Number.isSafeInteger(size) && size >= 0)
  if (!valid || shape.length > maxDimensions || !Number.isSafeInteger(product(shape) * 8)) {
    throw argumentError('shape', `up to ${maxDimensions} sizes, 0 or more`, shape)
  }
}

function format(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`
}
