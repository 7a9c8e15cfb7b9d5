import { stageInkIndices } from './colours.js'
import { element, type Markup } from './markup.js'
import { formatBytes, formatNumber, formatTime } from './number-format.js'
import { section, table } from './page-parts.js'
import type { ReportData } from './report-data.js'
import { percent } from './scale.js'

/** The stage table of the terminal, with a bar for the eye. */
export function stageSection({ result }: ReportData): Markup {
  const { stages } = result
  const inks = stageInkIndices(stages.map(({ name }) => name).filter((name) => name !== 'layer'))
  const longest = Math.max(1e-9, ...stages.map(({ medianUs }) => medianUs))
  return section(
    'stages',
    'Stages',
    'Time of the slowest rank in each pass: median and 99th percentile (p99) over the passes. ' +
      'Stages of different ranks overlap, so they need not add up to the layer.',
    element(
      'div',
      { class: 'scroll' },
      table(
        ['stage', 'median', '', 'p99', 'bytes', 'GB/s'],
        stages.map(({ name, medianUs, p99Us, bytes, gbPerSec }) => [
          name,
          formatTime(medianUs),
          medianBar(medianUs / longest, inks.get(name)),
          formatTime(p99Us),
          bytes === 0 ? '–' : formatBytes(bytes),
          bytes === 0 ? '–' : formatNumber(gbPerSec),
        ]),
        { id: 'stage-table', class: 'stages' },
      ),
    ),
  )
}

function medianBar(part: number, ink: number | undefined): Markup {
  return element(
    'svg',
    { class: 'median', width: 160, height: 12, 'aria-hidden': 'true' },
    element('rect', {
      class: ink === undefined ? 'whole' : `stage-${ink}`,
      width: percent(Math.max(0.006, part)),
      height: 12,
      rx: 2,
    }),
  )
}
