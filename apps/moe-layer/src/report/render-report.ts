import { createHash } from 'node:crypto'
import { expertSection } from './expert-section.js'
import { headerSection } from './header-section.js'
import { element, rawElement, scriptJson } from './markup.js'
import { pageScript } from './page-script.js'
import { pageStyle } from './page-style.js'
import type { ReportData } from './report-data.js'
import { stageSection } from './stage-section.js'
import { timelineSection } from './timeline-section.js'
import { trafficSection } from './traffic-section.js'

/**
 * The report of a run as one HTML page that needs nothing else: no network, no server, no library. Without scripting it
 * shows the typical pass; with it, tooltips and the other passes. Its policy allows its own style and script only.
 */
export function renderReport(data: ReportData): string {
  const timeline = timelineSection(data)
  const { result, ranks } = data
  const embedded = {
    result,
    expertSelections: ranks.map(({ expertSelections }) => expertSelections),
    timeline: timeline.scriptData,
  }
  const head = element(
    'head',
    {},
    element('meta', { charset: 'utf-8' }),
    element('meta', { 'http-equiv': 'Content-Security-Policy', content: policy() }),
    element('meta', { name: 'viewport', content: 'width=device-width, initial-scale=1' }),
    element('meta', { name: 'color-scheme', content: 'light dark' }),
    element('title', {}, `${result.model}: ${result.ranks} ranks, ${result.ok ? 'ok' : 'failed'}`),
    rawElement('style', {}, pageStyle),
  )
  const body = element(
    'body',
    {},
    element(
      'main',
      {},
      headerSection(data),
      stageSection(data),
      timeline.markup,
      trafficSection(data),
      expertSection(data),
    ),
    element('div', { id: 'tip', role: 'status', hidden: true }),
    rawElement('script', { type: 'application/json', id: 'report-data' }, scriptJson(embedded)),
    rawElement('script', {}, pageScript),
  )
  return `<!doctype html>\n${element('html', { lang: 'en' }, head, body).html}\n`
}

function policy(): string {
  const only = (content: string): string => `'sha256-${createHash('sha256').update(content).digest('base64')}'`
  return [
    "default-src 'none'",
    `style-src ${only(pageStyle)}`,
    `script-src ${only(pageScript)}`,
    "base-uri 'none'",
    "form-action 'none'",
  ].join('; ')
}
