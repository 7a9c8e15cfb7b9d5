/** A fill and what can be read on it, in one theme. */
type Ink = readonly [fill: string, text: string]

/**
 * Fills of the stages, light theme then dark. Neighbours in the flow differ in lightness, not only in hue, so that they
 * stay apart for every eye and on paper.
 */
const stageInks: readonly (readonly [Ink, Ink])[] = [
  [
    ['#8b93a1', '#10151d'],
    ['#79818f', '#0c1016'],
  ],
  [
    ['#f0cf7a', '#2b2205'],
    ['#f1d486', '#2b2205'],
  ],
  [
    ['#1e5aa0', '#ffffff'],
    ['#3f7fc9', '#04101f'],
  ],
  [
    ['#8ed1c6', '#06302a'],
    ['#9adccf', '#06302a'],
  ],
  [
    ['#b4532a', '#ffffff'],
    ['#cf6f45', '#1d0a02'],
  ],
  [
    ['#b9dc93', '#1d3305'],
    ['#c3e59f', '#1d3305'],
  ],
  [
    ['#5a4390', '#ffffff'],
    ['#8a72c6', '#0e0720'],
  ],
  [
    ['#e9b3cd', '#3d0f26'],
    ['#efc0d6', '#3d0f26'],
  ],
  [
    ['#3d6b4f', '#ffffff'],
    ['#5d9474', '#03130a'],
  ],
  [
    ['#c9ced6', '#1a1f27'],
    ['#cfd5de', '#1a1f27'],
  ],
]

const knownStages = ['gate', 'exchange', 'dispatch', 'permute', 'experts', 'unpermute', 'combine']

/** Number of the ink of every stage: fixed for the known ones, the remaining inks in turn for others. */
export function stageInkIndices(stages: readonly string[]): ReadonlyMap<string, number> {
  const spare = stageInks.length - knownStages.length
  let others = 0
  return new Map(
    stages.map((stage) => {
      const known = knownStages.indexOf(stage)
      return [stage, known >= 0 ? known : knownStages.length + (others++ % spare)]
    }),
  )
}

/** Fills of the heat map from little to much: lighter to darker on a light page, darker to lighter on a dark one. */
const heatInks: readonly (readonly [Ink, Ink])[] = [
  [
    ['#e6eff9', '#14202e'],
    ['#14263b', '#dbe8f6'],
  ],
  [
    ['#cadef1', '#14202e'],
    ['#1b3857', '#e4eef9'],
  ],
  [
    ['#a3c6e6', '#10202f'],
    ['#235078', '#eef5fc'],
  ],
  [
    ['#74a7d6', '#071626'],
    ['#31699b', '#ffffff'],
  ],
  [
    ['#3b74b0', '#ffffff'],
    ['#4c87bd', '#03101c'],
  ],
  [
    ['#23609f', '#ffffff'],
    ['#78aad8', '#03101c'],
  ],
  [
    ['#0e3d73', '#ffffff'],
    ['#b3d5f3', '#03101c'],
  ],
]

export const heatLevels = heatInks.length

/** Level of `value` on a linear scale from 0 to `most`: 0 for nothing, else 1 to `heatLevels`. */
export function heatLevel(value: number, most: number): number {
  if (!(value > 0) || !(most > 0)) return 0
  return Math.min(heatLevels, Math.max(1, Math.ceil((value / most) * heatLevels - 1e-9)))
}

/** CSS rules for all inks of a theme: 0 light, 1 dark. */
export function inkRules(theme: 0 | 1): string {
  const rules = (name: string, inks: readonly (readonly [Ink, Ink])[], first: number): string[] =>
    inks.map((themes, index) => {
      const [fill, text] = themes[theme]
      return `.${name}-${index + first}{fill:${fill}}.on-${name}-${index + first}{fill:${text}}`
    })
  return [...rules('stage', stageInks, 0), ...rules('heat', heatInks, 1)].join('\n')
}
