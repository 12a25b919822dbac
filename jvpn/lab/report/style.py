"""Looks of the page and its plots. Colours are Okabe's and Ito's, told apart without red and green, in both schemes."""

from typing import Final

PLOT: Final = """
svg.run {
  --ink: #1a1a1a; --soft: #5c5c5c; --grid: #d9d9d9; --up: #0072b2; --down: #d55e00; --fault: #d55e00; --attack: #a8558a;
  --carrier: #009e73; --attached: #56b4e9; --volatile: #e69f00; --recovering: #f0e442; --degraded: #cc79a7;
  --terminated: #444; --birth: #b3b3b3; --on: #111; --on-terminated: #fff; --on-do: #fff;
  font: 12px system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums;
}
@media screen and (prefers-color-scheme: dark) {
  svg.run {
    --ink: #ececec; --soft: #a9a9a9; --grid: #3d3d3d; --up: #56b4e9; --down: #e69f00; --fault: #e8742a;
    --attack: #d998bb; --carrier: #2cc295; --terminated: #ddd; --on-terminated: #111; --on-do: #111;
  }
}
svg.run text { fill: var(--ink); }
svg.run .heading { fill: var(--soft); font-weight: 600; }
svg.run .tick { fill: var(--soft); font-size: 11px; }
svg.run .grid { stroke: var(--grid); stroke-width: 1; }
svg.run .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg.run .up { stroke: var(--up); }
svg.run .down { stroke: var(--down); stroke-dasharray: 5 3; }
svg.run .step { fill: var(--soft); }
svg.run .step.fault { fill: var(--fault); }
svg.run .step.attack { fill: var(--attack); }
svg.run .band { fill: var(--fault); opacity: .13; }
svg.run .band.attack { fill: var(--attack); }
svg.run .band.do { fill: var(--soft); }
svg.run .moment { stroke: var(--soft); stroke-dasharray: 2 3; }
svg.run .bar { fill: var(--birth); stroke: var(--ink); stroke-width: .4; }
svg.run .bar.transport { fill: var(--carrier); }
svg.run .bar.attached { fill: var(--attached); }
svg.run .bar.volatile { fill: var(--volatile); }
svg.run .bar.recovering { fill: var(--recovering); }
svg.run .bar.degraded { fill: var(--degraded); }
svg.run .bar.terminated { fill: var(--terminated); }
svg.run text.on { fill: var(--on); font-size: 11px; }
svg.run text.on.do { fill: var(--on-do); }
svg.run text.on.terminated { fill: var(--on-terminated); }
"""

#: For a drawing that is a file of its own: a ground in its own scheme, whatever the viewer's is.
ALONE: Final = """
svg.run { background: #fff; }
@media screen and (prefers-color-scheme: dark) { svg.run { background: #161616; } }
"""

PAGE: Final = """
:root {
  color-scheme: light dark;
  --paper: #fff; --text: #1a1a1a; --muted: #5c5c5c; --line: #d9d9d9; --shade: #f4f4f4; --good: #00664b; --bad: #a83d00;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #161616; --text: #ececec; --muted: #a9a9a9; --line: #3d3d3d; --shade: #222;
    --good: #3ecfa4; --bad: #ff9a5c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1rem; max-width: 66rem; background: var(--paper); color: var(--text);
  font: 16px/1.5 system-ui, "Liberation Sans", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 2.5rem 0 .25rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
p { margin: .25rem 0; }
.muted { color: var(--muted); }
.passed { color: var(--good); font-weight: 600; white-space: nowrap; }
.failed { color: var(--bad); font-weight: 600; white-space: nowrap; }
.wide { overflow-x: auto; }
svg.run { display: block; width: 100%; min-width: 40rem; height: auto; margin: .75rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; white-space: nowrap; }
td:first-child, th:first-child { width: 1%; }
th.number, td.number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; width: 1%; }
.tight :is(th, td):not(:last-child) { width: 1%; white-space: nowrap; }
.summary td:nth-child(2) { min-width: 15rem; }
@media (max-width: 45rem) {
  .summary :is(td, th):nth-child(3), .summary :is(td, th):nth-child(4) { display: none; } /* the name has them too */
}
code, pre { font: .85rem/1.45 ui-monospace, "Liberation Mono", "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
pre { background: var(--shade); padding: .6rem .8rem; overflow-x: auto; white-space: pre-wrap; border-radius: 4px; }
summary { cursor: pointer; font-weight: 600; margin: .75rem 0 .25rem; }
a { color: inherit; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .25rem 0; font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  svg.run { min-width: 0; }
  svg.run, tr, dl { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  section { break-before: page; }
  details::details-content { content-visibility: visible; }
}
"""
