/** i32 words of a row of exponents: byte j of word p is exponent 4p + j, 0 where there is none. */
export function packUe8m0(exponents: ArrayLike<number>): Int32Array {
  const words = Array.from({ length: Math.ceil(exponents.length / 4) }, (_, p) =>
    [0, 1, 2, 3].reduce((word, j) => word + (exponents[4 * p + j] ?? 0) * 256 ** j, 0),
  )
  return Int32Array.from(words, (word) => word | 0)
}
