import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { element, escapeText, rawElement, scriptJson } from '../../src/report/markup.js'

describe('element', () => {
  it('escapes text and attributes, and leaves markup as it is', () => {
    const inner = element('b', {}, 'a < b & c')
    const markup = element('p', { title: `"it's"`, hidden: true, lang: undefined, x: 0, open: false }, inner, 7, [
      'x',
      '>',
    ])
    expect(markup.html).toBe('<p title="&#34;it&#39;s&#34;" hidden x="0"><b>a &#60; b &#38; c</b>7x&#62;</p>')
  })

  it('does not close what HTML does not close', () => {
    expect(element('meta', { charset: 'utf-8' }).html).toBe('<meta charset="utf-8">')
    expect(element('rect', {}).html).toBe('<rect></rect>')
  })

  it('lets no text open a tag or leave an attribute', () => {
    fc.assert(
      fc.property(fc.string({ unit: 'binary' }), (text) => {
        expect(escapeText(text)).not.toMatch(/[<>"']|&(?!#\d+;)/)
      }),
    )
  })
})

describe('raw elements', () => {
  it('hold their content unchanged', () => {
    expect(rawElement('style', {}, 'a > b { c: "d" }').html).toBe('<style>a > b { c: "d" }</style>')
  })

  it.each(['</script>', 'x</STYLE', '<!-- -->'])('refuse %s', (content) => {
    expect(() => rawElement('script', {}, content)).toThrow('must not hold')
  })
})

describe('JSON in a script element', () => {
  it('cannot end the element and stays the same value', () => {
    const value = { '</script>': ['<!--', '&amp;', '\u2028\u2029', 1.5, null] }
    expect(scriptJson(value)).not.toMatch(/[<>&\u2028\u2029]/)
    expect(JSON.parse(scriptJson(value))).toEqual(value)
  })

  it('is reversible for every value', () => {
    fc.assert(
      fc.property(fc.jsonValue(), (value) => {
        expect(JSON.stringify(JSON.parse(scriptJson(value)))).toBe(JSON.stringify(value))
      }),
    )
  })
})
