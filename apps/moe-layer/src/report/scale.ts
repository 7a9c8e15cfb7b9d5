/**
 * The step between round numbers (1, 2 or 5 times a power of ten) that gives at most `most` steps up to `end`.
 * 1 where there is no length to divide.
 */
export function niceStep(end: number, most: number): number {
  if (!(end > 0)) return 1
  const least = end / most
  const power = 10 ** Math.floor(Math.log10(least))
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= least * (1 - 1e-9))
  return factor! * power
}

/** The next finer step of which `step` is a multiple: a fifth, or a fourth of those that begin with 2. */
export function finerStep(step: number): number {
  const leading = Number(step.toExponential()[0])
  return leading === 2 ? step / 4 : step / 5
}

/** Multiples of `step` from 0 to `end`, without the dust that repeated adding leaves. */
export function multiples(step: number, end: number): number[] {
  const count = Math.floor(end / step + 1e-9)
  return Array.from({ length: count + 1 }, (_, index) => Number((index * step).toPrecision(12)))
}

/** Every how many of `count` neighbours get a label so that at most `most` do: 1, 2, 4, 8 and so on. */
export function labelStep(count: number, most: number): number {
  let step = 1
  while (Math.ceil(count / step) > most) step *= 2
  return step
}

/** Part of a whole as a length in SVG: `12.34%`. */
export function percent(part: number): string {
  return `${Number((part * 100).toFixed(3))}%`
}
