/** A unit and how many base units it holds. */
export interface Unit {
  readonly name: string
  readonly size: number
}

const byteUnits: readonly Unit[] = [
  { name: 'TB', size: 1e12 },
  { name: 'GB', size: 1e9 },
  { name: 'MB', size: 1e6 },
  { name: 'kB', size: 1e3 },
  { name: 'B', size: 1 },
]

const timeUnits: readonly Unit[] = [
  { name: 's', size: 1e6 },
  { name: 'ms', size: 1e3 },
  { name: 'µs', size: 1 },
]

/** The unit in which `bytes` reads best. */
export function byteUnit(bytes: number): Unit {
  return unitOf(byteUnits, bytes)
}

/** The unit in which `microseconds` reads best. */
export function timeUnit(microseconds: number): Unit {
  return unitOf(timeUnits, microseconds)
}

export function formatBytes(bytes: number): string {
  return inUnit(bytes, byteUnit(bytes))
}

export function formatTime(microseconds: number): string {
  return inUnit(microseconds, timeUnit(microseconds))
}

/** Three digits or more of a number from 0 up, without an exponent; whole numbers below 100 stay whole. */
export function formatNumber(value: number): string {
  if (Number.isInteger(value) && value < 100) return String(value)
  if (value < 0.005) return '<0.01'
  if (value >= 99.95) return formatCount(Math.round(value))
  return value.toFixed(value >= 9.995 ? 1 : 2)
}

/** A whole number with its thousands apart. */
export function formatCount(value: number): string {
  return String(value).replace(/\B(?=(\d{3})+$)/g, '\u202f')
}

/** An error as the terminal shows it; JSON has no infinity, so the largest number stands for "not finite". */
export function formatError(value: number): string {
  return value >= Number.MAX_VALUE || Number.isNaN(value) ? 'not finite' : value.toExponential(2)
}

function inUnit(value: number, { name, size }: Unit): string {
  return `${formatNumber(value / size)}\u00a0${name}`
}

function unitOf(units: readonly Unit[], value: number): Unit {
  return units.find(({ size }) => value >= size) ?? units.at(-1)!
}
