import { modeText } from '../results/layer-result.js'
import { element, type Markup } from './markup.js'
import { formatCount, formatError, formatTime } from './number-format.js'
import type { ReportData } from './report-data.js'

/** What ran, and whether its result is right. */
export function headerSection(data: ReportData): Markup {
  const { result, workers, createdAt, machine } = data
  const { ok, model, ranks, device } = result
  const what = `${ranks} ${ranks === 1 ? 'rank' : 'ranks'} on ${device}${workers ? ', worker threads' : ''}`
  return element(
    'header',
    {},
    element(
      'div',
      { class: 'title' },
      element(
        'div',
        {},
        element('p', { class: 'kicker' }, 'Mixture-of-Experts layer'),
        element('h1', {}, model),
        element('p', {}, what),
      ),
      element('p', { id: 'verdict', class: ok ? 'verdict ok' : 'verdict failed' }, ok ? '✓ ok' : '✕ failed'),
    ),
    element(
      'dl',
      { class: 'facts' },
      facts(data).map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
    ),
    element(
      'p',
      { class: 'origin' },
      element('time', { datetime: createdAt }, readableTime(createdAt)),
      ` · ${machine}`,
    ),
  )
}

function facts({ result, ranks, routing, seed }: ReportData): [string, string][] {
  const { maxRelError, tolerance, deterministic, stages } = result
  const share = (maxRelError / tolerance) * 100
  const layer = stages.find(({ name }) => name === 'layer')
  return [
    ['largest error', formatError(maxRelError)],
    ['tolerance', share <= 1000 ? `${tolerance} (${Math.round(share)} % used)` : String(tolerance)],
    ['passes', `${ranks[0]?.passes.length ?? 0}, ${deterministic ? 'all bit-identical' : 'they differ'}`],
    ...(layer === undefined ? [] : [['layer, median', formatTime(layer.medianUs)] as [string, string]]),
    ['tokens', tokensText(result.tokensPerRank)],
    ['experts', `${result.experts}, top-${result.topK}`],
    ['hidden', String(result.hidden)],
    ['intermediate', String(result.intermediate)],
    ['dtype', result.dtype],
    ['mode', modeText(result)],
    ['routing', routing],
    ['seed', String(seed)],
  ]
}

function tokensText(counts: readonly number[]): string {
  const total = counts.reduce((sum, count) => sum + count, 0)
  const [least, most] = [Math.min(...counts), Math.max(...counts)]
  const each = least === most ? formatCount(least) : `${formatCount(least)} to ${formatCount(most)}`
  return counts.length === 1 ? formatCount(total) : `${formatCount(total)}, ${each} a rank`
}

function readableTime(createdAt: string): string {
  return `${createdAt.slice(0, 16).replace('T', ' ')} UTC`
}
