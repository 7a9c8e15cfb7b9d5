const quotation = '"'.charCodeAt(0)
const backslash = '\\'.charCodeAt(0)
const opening = '{'.charCodeAt(0)
const closing = '}'.charCodeAt(0)

/**
 * The first key that occurs twice in one object of `json`, which must be valid JSON. JSON.parse keeps the last of
 * such entries and says nothing, so a file could show one tensor to this reader and another one to the next.
 */
export function findDuplicateKey(json: string): string | undefined {
  const objects: Set<string>[] = []
  // A plain walk: the text may be a hostile 100 MB, which a regular expression with alternatives does not survive.
  for (let i = 0; i < json.length; i++) {
    const character = json.charCodeAt(i)
    if (character === opening) objects.push(new Set())
    else if (character === closing) objects.pop()
    else if (character === quotation) {
      const end = endOfString(json, i)
      if (isFollowedByColon(json, end)) {
        const key = JSON.parse(json.slice(i, end)) as string
        const keys = objects.at(-1)!
        if (keys.has(key)) return key
        keys.add(key)
      }
      i = end - 1
    }
  }
  return undefined
}

/** The place behind the closing quotation mark of the string that starts at `start`. */
function endOfString(json: string, start: number): number {
  let i = start + 1
  while (json.charCodeAt(i) !== quotation) i += json.charCodeAt(i) === backslash ? 2 : 1
  return i + 1
}

function isFollowedByColon(json: string, start: number): boolean {
  let i = start
  while (' \t\r\n'.includes(json.charAt(i)) && i < json.length) i++
  return json.charAt(i) === ':'
}
