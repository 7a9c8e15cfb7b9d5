/** Finished HTML or SVG. Text becomes markup only through `element`, which escapes it. */
export class Markup {
  constructor(readonly html: string) {}
}

/** What stands inside an element: markup as it is, text escaped. */
export type Child = Markup | string | number | readonly Child[]

export type Attributes = Readonly<Record<string, string | number | boolean | undefined>>

const voidElements = new Set(['meta', 'br'])

/** An element with its attributes and children. Attributes that are `undefined` or `false` are left out. */
export function element(name: string, attributes: Attributes = {}, ...children: Child[]): Markup {
  const start = `<${name}${Object.entries(attributes).map(attributeText).join('')}>`
  return new Markup(voidElements.has(name) ? start : `${start}${htmlOf(children)}</${name}>`)
}

/**
 * A style or script element, whose content HTML does not unescape.
 * @throws Error when the content would end the element early.
 */
export function rawElement(name: 'style' | 'script', attributes: Attributes, content: string): Markup {
  if (/<\/|<!--/.test(content)) throw new Error(`content of <${name}> must not hold "</" or "<!--"`)
  return new Markup(`<${name}${Object.entries(attributes).map(attributeText).join('')}>${content}</${name}>`)
}

/** A value as JSON that is safe inside a script element: no `<`, and no line separators that old parsers trip over. */
export function scriptJson(value: unknown): string {
  const unsafe = /[<>&\u2028\u2029]/g
  return JSON.stringify(value).replace(unsafe, (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, '0')}`)
}

/** Text as it must stand between tags or in a quoted attribute. */
export function escapeText(text: string): string {
  return text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`)
}

function htmlOf(child: Child): string {
  if (child instanceof Markup) return child.html
  if (typeof child === 'object') return child.map(htmlOf).join('')
  return escapeText(String(child))
}

function attributeText([name, value]: [string, string | number | boolean | undefined]): string {
  if (value === undefined || value === false) return ''
  return value === true ? ` ${name}` : ` ${name}="${escapeText(String(value))}"`
}
