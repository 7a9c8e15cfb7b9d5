import { styleText } from 'node:util'
import { pushOnSameSms } from '../measure/ceiling-names.js'
import type { BenchResult, Ceiling, OperationResult } from './bench-result.js'

/** The result as a person reads it. */
export function terminalReport({ ok, device, gpu, machine, config, results }: BenchResult): string {
  const { ranks, world, launch, threads, tokens, routing, hidden, topk, experts, iters } = config
  const failures = results.flatMap(({ name, error }) =>
    error === undefined ? [] : `${styleText('red', name)}: ${error}`,
  )
  const who = `${ranks} ranks${world === ranks ? '' : ` of ${world}`}`
  const verdict = ok
    ? `${styleText('green', 'ok')}: all results are correct`
    : styleText('red', 'FAILED: a result is wrong')
  return [
    gpu === undefined
      ? `${device}, ${machine.cores} cores of ${machine.model}; ${who} with ${threads} threads each`
      : `${device}, ${gpu}; ${who}, launched as ${launch}`,
    `${tokens} tokens a rank, hidden ${hidden}, top-${topk} of ${experts} experts, ${routing}; ${iters} iterations, slowest rank`,
    '',
    ...tableLines(results),
    '',
    ...failures,
    verdict,
  ].join('\n')
}

/** A line for the header and one for each result. */
export function tableLines(results: readonly OperationResult[]): string[] {
  const withSameSms = results.some((result) => sameSmsOf(result) !== undefined)
  const header = [
    'operation',
    'median us',
    'p99 us',
    'MB',
    'wire MB',
    'GB/s',
    'ceiling us',
    'ceiling GB/s',
    'ratio',
    'ceiling',
    // Only pushes of one kernel have such a thing.
    ...(withSameSms ? ['same SMs us', 'ratio'] : []),
  ]
  return table([header, ...results.map((result) => cells(result, withSameSms))])
}

function sameSmsOf({ ceilings }: OperationResult): Ceiling | undefined {
  return ceilings.find(({ name }) => name === pushOnSameSms)
}

function cells(result: OperationResult, withSameSms: boolean): string[] {
  const { name, medianUs, p99Us, bytes, wireBytes, gbPerSec } = result
  const megabytes = (value: number | undefined): string =>
    value === undefined || bytes === 0 ? '' : (value / 1e6).toFixed(2)
  return [
    ...[name, short(medianUs), short(p99Us), megabytes(bytes), megabytes(wireBytes)],
    bytes === 0 ? '' : gbPerSec.toFixed(2),
    ...ceilingCells(result),
    ...(withSameSms ? sameSmsCells(result) : []),
  ]
}

function sameSmsCells(result: OperationResult): string[] {
  const same = sameSmsOf(result)
  return same === undefined ? ['', ''] : [short(same.medianUs), same.ratio.toFixed(2)]
}

function ceilingCells({ ceiling, ceilingUs, ceilingGbPerSec, ratio, emptyLaunchUs }: OperationResult): string[] {
  if (ceilingUs !== null) return [short(ceilingUs), ceilingGbPerSec!.toFixed(2), ratio!.toFixed(2), ceiling!]
  return emptyLaunchUs === undefined ? ['', '', '', ''] : [short(emptyLaunchUs), '', '', 'empty launch']
}

function short(value: number): string {
  return value.toFixed(value < 100 ? 2 : 0)
}

/** One operation in a line, for those who wait. */
export function progressLine({
  name,
  error,
  medianUs,
  bytes,
  gbPerSec,
  ceiling,
  ratio,
  emptyLaunchUs,
}: OperationResult): string {
  if (error !== undefined) return `${name}: ${error}`
  return [
    `${name}: ${short(medianUs)} us`,
    ...(bytes === 0 ? [] : [`${short(gbPerSec)} GB/s`]),
    ...(ratio === null ? [] : [`ratio ${ratio.toFixed(2)} to ${ceiling}`]),
    ...(emptyLaunchUs === undefined ? [] : [`empty launch ${short(emptyLaunchUs)} us`]),
  ].join(', ')
}

/** First column to the left, the others to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows.map((row) =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]! + 2))).join(''),
  )
}
