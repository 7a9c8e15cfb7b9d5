import { inkRules } from './colours.js'

/** The page's style sheet. Colours that a theme changes are properties or come from `inkRules`. */
export const pageStyle = `
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --text: #1b2027; --quiet: #5a6471; --line: #dfe3e8; --track: #eceff3;
  --shade: #f3f5f8; --edge: #b9c2cd; --accent: #23609f; --strong: #b4532a;
  --ok: #1d6b3e; --ok-back: #e3f3e9; --bad: #a3221c; --bad-back: #fbe6e4;
}
${inkRules(0)}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10141a; --card: #171c24; --text: #e5e9ef; --quiet: #a0abb9; --line: #2c3441; --track: #232b36;
    --shade: #1d242e; --edge: #4a5564; --accent: #78aad8; --strong: #e58a5e;
    --ok: #8fd6a8; --ok-back: #17301f; --bad: #f2a19b; --bad-back: #3a1917;
  }
  ${inkRules(1)}
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 4px; font-size: 18px; }
p { margin: 0; }
section { margin-top: 20px; padding: 20px; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
.kicker, .introduction, .origin { color: var(--quiet); font-size: 13px; }
.introduction { max-width: 76ch; margin-bottom: 14px; }
.title { display: flex; flex-wrap: wrap; justify-content: space-between; align-items: center; gap: 12px; }
.title > div { min-width: 0; }
.verdict { padding: 6px 16px; border: 1px solid; border-radius: 999px; }
.verdict { font-size: 17px; font-weight: 600; white-space: nowrap; }
.verdict.ok { color: var(--ok); background: var(--ok-back); }
.verdict.failed { color: var(--bad); background: var(--bad-back); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(155px, 1fr)); gap: 12px 20px; margin: 20px 0 12px; }
.facts dt { color: var(--quiet); font-size: 12px; }
.facts dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; min-width: 0; }
.framed { display: flex; }
.framed > .scroll { flex: 1; }
.gutter { flex: none; }
svg { display: block; font: 12px system-ui, sans-serif; font-variant-numeric: tabular-nums; }
svg text { fill: var(--text); }
.plot { min-width: 560px; }
.zoom-4 { width: 400%; min-width: 2240px; }
.zoom-16 { width: 1600%; min-width: 8960px; }
.least-280 { min-width: 280px; } .least-480 { min-width: 480px; }
.least-800 { min-width: 800px; } .least-900 { min-width: 900px; }
.from-4, .from-16 { display: none; }
.zoom-4 .from-4, .zoom-16 .from-4, .zoom-16 .from-16 { display: inline; }
.tick line, .grid { stroke: var(--line); }
svg .axis, svg .axis-name, .tick text { fill: var(--quiet); }
.axis-name { font-size: 11px; }
.track { fill: var(--track); }
.label { text-anchor: middle; dominant-baseline: central; pointer-events: none; }
.bar, .cell, .column, .edge { shape-rendering: geometricPrecision; }
.heat-0 { fill: none; stroke: var(--line); pointer-events: all; }
svg .on-heat-0 { fill: var(--quiet); }
.own { fill: none; stroke: var(--text); stroke-width: 1.5; pointer-events: none; }
.own.inner { stroke: var(--card); }
.edge { fill: var(--edge); }
.whole { fill: var(--quiet); }
.count { align-self: center; margin-left: -14px; color: var(--quiet); }
.band { fill: transparent; }
.shaded { fill: var(--shade); }
.column { fill: var(--accent); }
.column.busiest { fill: var(--strong); }
.mean { stroke: var(--text); stroke-dasharray: 5 4; pointer-events: none; }
.mean.ground { stroke: var(--card); stroke-width: 3; stroke-dasharray: none; }
svg .most { fill: var(--strong); font-weight: 600; }
[data-tip]:hover { stroke: var(--text); stroke-width: 1.5; }
.band:hover { stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 12px; padding: 0; }
.legend { list-style: none; font-size: 13px; }
.legend li { display: flex; align-items: center; gap: 6px; }
.swatch { stroke: var(--line); }
.controls { display: flex; flex-wrap: wrap; gap: 8px 20px; margin-bottom: 12px; font-size: 13px; }
.controls[hidden] { display: none; }
select { font: inherit; padding: 3px 6px; color: var(--text); background: var(--page); }
select { border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400; }
th:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--quiet); vertical-align: bottom; }
.stages { width: 100%; }
.stages td:nth-child(3) { width: 180px; }
tbody tr:last-child > * { border-bottom: 0; }
details { margin-top: 14px; }
summary { color: var(--quiet); font-size: 13px; cursor: pointer; }
details[open] summary { margin-bottom: 8px; }
#tip { position: fixed; z-index: 1; max-width: 320px; padding: 6px 10px; white-space: pre-line; pointer-events: none;
  color: var(--page); background: var(--text); border-radius: 6px; font-size: 13px; font-variant-numeric: tabular-nums; }
#tip[hidden] { display: none; }
@media (max-width: 560px) {
  main { padding: 16px 10px 32px; }
  section { padding: 14px 12px; }
  h1 { font-size: 22px; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: 4px 8px; }
  .stages td:nth-child(3), .stages th:nth-child(3) { display: none; }
}
@media print { section { break-inside: avoid; } .controls, #tip { display: none; } }
`
