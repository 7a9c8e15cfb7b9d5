/** A safetensors file with this header text and as many data bytes. */
export function fileOf(header: string | object, dataBytes: number): Buffer {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header))
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(BigInt(json.length))
  return Buffer.concat([prefix, json, Buffer.alloc(dataBytes)])
}

function prefixOf(length: bigint, rest = ''): Buffer {
  const prefix = Buffer.alloc(8)
  prefix.writeBigUInt64LE(length)
  return Buffer.concat([prefix, Buffer.from(rest)])
}

const f32 = (shape: unknown, offsets: unknown) => ({ dtype: 'F32', shape, data_offsets: offsets })

/** Files that lie, each with a part of the message that must say how. */
export const hostileFiles: readonly (readonly [title: string, bytes: Buffer, message: string])[] = [
  ['an empty file', Buffer.alloc(0), 'too few for the header length'],
  ['a file of 7 bytes', Buffer.alloc(7), '7 bytes are too few'],
  ['a header length of 2^63', prefixOf(2n ** 63n, '{}'), 'header of 9223372036854775808 bytes'],
  ['a header length of 2^64 - 1', prefixOf(2n ** 64n - 1n, '{}'), 'at most 100000000'],
  ['a header length just above the limit', prefixOf(100_000_001n, '{}'), 'at most 100000000'],
  ['a header that is cut off', prefixOf(3n, '{}'), 'states a header of 3 bytes, but only 2 bytes follow'],
  ['an empty header', fileOf('', 0), 'not JSON'],
  ['a header that is not JSON', fileOf('{"a":', 0), 'not JSON'],
  [
    'a header that is not UTF-8',
    Buffer.concat([prefixOf(4n), Buffer.from([0x22, 0xff, 0xfe, 0x22])]),
    'not JSON in UTF-8',
  ],
  ['a byte order mark', fileOf('\ufeff{}', 0), 'not JSON'],
  ['a header that is a list', fileOf('[]', 0), 'not a JSON object'],
  ['a header that is null', fileOf('null', 0), 'not a JSON object'],
  ['metadata that are numbers', fileOf({ __metadata__: { a: 1 } }, 0), '__metadata__'],
  ['metadata that are a list', fileOf({ __metadata__: ['a'] }, 0), '__metadata__'],
  ['an entry that is a number', fileOf({ a: 1 }, 0), 'tensor "a": its entry is not an object'],
  ['a missing dtype', fileOf({ a: { shape: [1], data_offsets: [0, 4] } }, 4), 'tensor "a": dtype undefined'],
  ['an unknown dtype', fileOf({ a: { ...f32([1], [0, 4]), dtype: 'F31' } }, 4), 'dtype "F31" is not known'],
  ['a dtype of the prototype', fileOf({ a: { ...f32([1], [0, 4]), dtype: 'toString' } }, 4), 'is not known'],
  ['a missing shape', fileOf({ a: { dtype: 'F32', data_offsets: [0, 4] } }, 4), 'shape undefined'],
  ['a negative size', fileOf({ a: f32([-1], [0, 4]) }, 4), 'shape [-1]'],
  ['a fractional size', fileOf({ a: f32([1.5], [0, 6]) }, 6), 'shape [1.5]'],
  ['a size that is text', fileOf({ a: f32(['1'], [0, 4]) }, 4), 'shape ["1"]'],
  ['a size beyond 2^53', fileOf('{"a":{"dtype":"F32","shape":[9007199254740993],"data_offsets":[0,4]}}', 4), 'shape'],
  ['sizes whose product overflows', fileOf({ a: f32([2 ** 30, 2 ** 30, 2 ** 30], [0, 4]) }, 4), 'too many elements'],
  ['an overflow hidden by a zero', fileOf({ a: f32([2 ** 52, 2 ** 52, 0], [0, 0]) }, 0), 'too many elements'],
  ['missing offsets', fileOf({ a: { dtype: 'F32', shape: [1] } }, 4), 'data_offsets undefined'],
  ['one offset', fileOf({ a: f32([1], [0]) }, 4), 'data_offsets [0]'],
  ['three offsets', fileOf({ a: f32([1], [0, 4, 8]) }, 8), 'data_offsets [0,4,8]'],
  ['a negative offset', fileOf({ a: f32([1], [-4, 0]) }, 4), 'data_offsets [-4,0]'],
  ['a fractional offset', fileOf({ a: f32([1], [0.5, 4.5]) }, 5), 'data_offsets [0.5,4.5]'],
  ['offsets the wrong way round', fileOf({ a: f32([1], [4, 0]) }, 4), 'lie outside'],
  ['an end behind the file', fileOf({ a: f32([2], [0, 8]) }, 4), 'lie outside the 4 bytes'],
  ['a length that is not the shape', fileOf({ a: f32([2], [0, 4]) }, 4), 'takes 8 bytes, but data_offsets hold 4'],
  ['tensors that overlap', fileOf({ a: f32([2], [0, 8]), b: f32([2], [4, 12]) }, 12), '"a" and "b" overlap'],
  ['two tensors in one place', fileOf({ a: f32([1], [0, 4]), b: f32([1], [0, 4]) }, 4), 'overlap'],
  ['a gap between tensors', fileOf({ a: f32([1], [0, 4]), b: f32([1], [8, 12]) }, 12), 'bytes 4 to 8'],
  ['a gap before the first tensor', fileOf({ a: f32([1], [4, 8]) }, 8), 'bytes 0 to 4'],
  ['bytes behind the last tensor', fileOf({ a: f32([1], [0, 4]) }, 5), 'bytes 4 to 5'],
  [
    'a tensor twice',
    fileOf(`{"a":${JSON.stringify(f32([1], [0, 4]))},"a":${JSON.stringify(f32([1], [0, 4]))}}`, 4),
    'key "a" twice',
  ],
  ['a tensor twice in other letters', fileOf(`{"a":${JSON.stringify(f32([0], [0, 0]))},"\\u0061" : {}}`, 0), 'twice'],
  [
    'a dtype twice',
    fileOf('{"a":{"dtype":"F32","dtype":"I32","shape":[1],"data_offsets":[0,4]}}', 4),
    'key "dtype" twice',
  ],
]
