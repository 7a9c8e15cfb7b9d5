import { type Attributes, type Child, element, type Markup } from './markup.js'

/** A part of the page with its heading and one paragraph of what it shows. */
export function section(id: string, heading: string, introduction: Child, ...content: Child[]): Markup {
  return element(
    'section',
    { 'aria-labelledby': `${id}-heading` },
    element('h2', { id: `${id}-heading` }, heading),
    element('p', { class: 'introduction' }, introduction),
    ...content,
  )
}

export interface Chart {
  readonly id: string
  readonly title: string
  readonly description: string
  readonly attributes: Attributes
}

/** An SVG that names and describes itself to those who cannot see it. */
export function chart({ id, title, description, attributes }: Chart, ...content: Child[]): Markup {
  return element(
    'svg',
    { id, role: 'img', 'aria-labelledby': `${id}-title ${id}-description`, ...attributes },
    element('title', { id: `${id}-title` }, title),
    element('desc', { id: `${id}-description` }, description),
    ...content,
  )
}

/** Fills and what they mean. */
export function legend(entries: readonly { readonly fill: string; readonly text: string }[]): Markup {
  return element(
    'ul',
    { class: 'legend' },
    entries.map(({ fill, text }) =>
      element(
        'li',
        {},
        element(
          'svg',
          { width: 14, height: 14, 'aria-hidden': 'true' },
          element('rect', { class: `swatch ${fill}`, x: 0.5, y: 0.5, width: 13, height: 13, rx: 2 }),
        ),
        text,
      ),
    ),
  )
}

export interface DataTable {
  readonly id: string
  readonly summary: string
  readonly head: readonly Child[]
  readonly rows: readonly (readonly Child[])[]
}

/** The numbers of a chart, folded away. The first column heads its row. */
export function dataTable({ id, summary, head, rows }: DataTable): Markup {
  return element(
    'details',
    {},
    element('summary', {}, summary),
    element('div', { class: 'scroll' }, table(head, rows, { id })),
  )
}

export function table(
  head: readonly Child[],
  rows: readonly (readonly Child[])[],
  attributes: Attributes = {},
): Markup {
  return element(
    'table',
    attributes,
    element(
      'thead',
      {},
      element(
        'tr',
        {},
        head.map((cell) => element('th', { scope: 'col' }, cell)),
      ),
    ),
    element(
      'tbody',
      {},
      rows.map(([first, ...others]) =>
        element(
          'tr',
          {},
          element('th', { scope: 'row' }, first!),
          others.map((cell) => element('td', {}, cell)),
        ),
      ),
    ),
  )
}
