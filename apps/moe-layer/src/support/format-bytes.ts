const units = ['GiB', 'MiB', 'KiB'] as const

/** Bytes as a person reads them, and exactly: `2.25 GiB (2415919104 bytes)`. */
export function formatBytes(bytes: number): string {
  for (const [index, unit] of units.entries()) {
    const size = 1024 ** (units.length - index)
    if (bytes >= size) return `${(bytes / size).toFixed(2)} ${unit} (${bytes} bytes)`
  }
  return `${bytes} bytes`
}
