"""How the report looks: the one home of its colours, of its style sheet and of the script for hints."""

import base64
import hashlib

# Of each colour its name, and how it looks on light and on dark paper.
COLOURS = {
    "paper": ("#ffffff", "#14171c"),
    "ink": ("#1b2027", "#e6e9ee"),
    "muted": ("#59636f", "#a0aab6"),
    "line": ("#d5dae0", "#3a424d"),
    "card": ("#f4f6f8", "#1d2229"),
    "float": ("#b3580a", "#f2a65a"),
    "bf16": ("#0f7a63", "#4fc9a8"),
    "int8": ("#1f5fb4", "#7db1f5"),
    "good": ("#1a7037", "#6fd08c"),
    "bad": ("#b3261e", "#ff8f86"),
}
# What stands for a colour in a picture until it is put into the page.
PLACEHOLDERS = {name: f"#0a0b{index:02x}" for index, name in enumerate(COLOURS)}

_LIGHT, _DARK = (";".join(f"--{name}:{both[mode]}" for name, both in COLOURS.items()) for mode in (0, 1))

CSS = f"""
:root{{color-scheme:light dark;{_LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:1rem;max-width:68rem;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere}}
h1{{font-size:1.5rem;line-height:1.25;margin:.5rem 0}}
h2{{font-size:1.15rem;margin:2.2rem 0 .3rem;border-top:1px solid var(--line);padding-top:1rem}}
p{{margin:.4rem 0}}
.muted,figcaption,.note{{color:var(--muted);font-size:.9rem}}
.good{{color:var(--good)}}.bad{{color:var(--bad)}}
.cards{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:.7rem;margin:1rem 0}}
.card{{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem .9rem}}
.card b{{display:block;font-size:1.45rem;line-height:1.3}}
.card span{{color:var(--muted);font-size:.9rem}}
.wide{{grid-column:1/-1}}
code,pre{{font:.85rem/1.45 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere;white-space:pre-wrap}}
pre{{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.7rem;margin:.4rem 0}}
figure{{margin:.5rem 0}}
figure>svg{{display:block;width:100%;max-width:36rem;height:auto}}
svg text{{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}}
.grid{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:.5rem}}
.pair{{display:grid;grid-template-columns:1fr 1fr;gap:.8rem}}
.pair svg{{width:100%;height:auto;display:block}}
svg .small{{font-size:13px;fill:var(--muted)}}
.strip{{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:.35rem;margin:.5rem 0 1.1rem}}
.strip svg{{width:100%;height:auto;display:block}}
.strip figcaption{{font-size:.8rem;line-height:1.3}}
.strip figure{{margin:0}}
.strip .name{{grid-column:1/-1;font-size:.9rem}}
.boxes{{--float:#f2a65a;--int8:#7db1f5;--good:#6fd08c}}
.boxes rect{{fill:none;stroke-width:2.5;vector-effect:non-scaling-stroke}}
.boxes text{{font-size:11px;paint-order:stroke;stroke:#000;stroke-width:2.5px;fill:#fff}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.9rem;width:100%}}
th,td{{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--line)}}
td.figure,th.figure{{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}}
.trials td{{min-width:3rem}}.trials td:first-child{{white-space:nowrap}}
.trials td.text:not(:first-child){{min-width:11rem}}
.facts th{{font-weight:600;width:12rem}}
[data-hint]{{cursor:help}}
#hint{{position:fixed;z-index:1;max-width:18rem;padding:.35rem .55rem;border-radius:.35rem;background:var(--ink);
color:var(--paper);font-size:.85rem;pointer-events:none}}
section{{min-width:0}}
@media print,(min-width:60rem){{main{{display:grid;grid-template-columns:1fr 1fr;gap:0 2.5rem}}
section.wide{{grid-column:1/-1}}}}
@media(max-width:34rem){{.facts th{{width:7.5rem}}.boxes text{{display:none}}}}
@media print{{body{{max-width:none;padding:0}}figure,.card,tr,.strip,.half{{break-inside:avoid}}
h2,.note{{break-after:avoid}}main{{gap:0 1.5rem}}
.cards{{grid-template-columns:repeat(4,1fr)}}
.scroll{{overflow:visible}}a{{color:inherit}}}}
"""

# A hint follows the pointer, and comes with a tap where there is none.
SCRIPT = """
const hint = document.getElementById("hint");
function show(event) {
  const marked = event.target.closest ? event.target.closest("[data-hint]") : null;
  hint.hidden = !marked;
  if (!marked) return;
  hint.textContent = marked.dataset.hint;
  const width = hint.offsetWidth, height = hint.offsetHeight;
  hint.style.left = Math.max(4, Math.min(event.clientX + 12, document.documentElement.clientWidth - width - 4)) + "px";
  hint.style.top = Math.max(4, event.clientY - height - 12) + "px";
}
document.addEventListener("mousemove", show);
document.addEventListener("click", show);
"""

# Nothing is fetched, nothing is sent, and no script runs but this one.
SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"script-src 'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
)
