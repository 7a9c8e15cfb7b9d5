import { styleText } from 'node:util'
import { type LayerResult, modeText } from './layer-result.js'

/** The result as a person reads it. */
export function terminalReport(result: LayerResult): string {
  const { ranks, device, model, hidden, intermediate, experts, topK, tokensPerRank } = result
  const counts = new Set(tokensPerRank)
  const tokens = counts.size === 1 ? `${tokensPerRank[0]} tokens a rank` : `${tokensPerRank.join(', ')} tokens`
  const header = ['stage', 'median us', 'p99 us', 'MB', 'GB/s']
  const rows = result.stages.map(({ name, medianUs, p99Us, bytes, gbPerSec }) => [
    ...[name, medianUs.toFixed(0), p99Us.toFixed(0)],
    ...(bytes === 0 ? ['', ''] : [(bytes / 1e6).toFixed(2), gbPerSec.toFixed(2)]),
  ])
  const verdict = result.ok ? styleText('green', 'ok') : styleText('red', 'FAILED')
  return [
    '',
    `${model}: ${experts} experts, top-${topK}, hidden ${hidden}, intermediate ${intermediate}, ${result.dtype}`,
    `${ranks} ranks on ${device}, ${tokens}, mode ${modeText(result)}`,
    ...(device === result.expertsDevice ? [] : ['experts compute on the host: their rows go there and back']),
    '',
    ...table([header, ...rows]),
    '',
    `${verdict}: largest error against the dense computation ${result.maxRelError.toExponential(2)}, tolerance ${result.tolerance}` +
      (result.deterministic ? '; all passes bit-identical' : '; passes DIFFER'),
  ].join('\n')
}

/** First column to the left, the others to the right. */
function table(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows.map((row) =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]! + 2))).join(''),
  )
}
