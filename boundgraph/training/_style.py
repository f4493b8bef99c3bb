"""The style sheet of a report: one column, light and dark, nothing loaded from elsewhere."""

STYLE = """
:root { --ink:#1e293b; --soft:#64748b; --paper:#fff; --wash:#f6f8fb; --edge:#e2e8f0;
  --clean:#2563eb; --attacked:#d97706; --certified:#15803d; --wrong:#be123c; color-scheme:light
  dark }
@media (prefers-color-scheme:dark) { :root { --ink:#e2e8f0; --soft:#94a3b8; --paper:#0f172a;
  --wash:#1a2438; --edge:#334155 } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:15px/1.55
  system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif }
main { max-width:1180px; margin:0 auto; padding:28px 24px 60px }
h1 { font-size:30px; line-height:1.2; margin:2px 0 8px }
h2 { font-size:19px; margin:38px 0 12px }
h3 { font-size:14px; margin:0 0 6px; color:var(--soft) }
p { margin:8px 0; max-width:80ch }
.small { font-size:13px; color:var(--soft) }
.lead { color:var(--soft) }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(230px,1fr)); gap:14px;
  margin:20px 0 }
.card { border:1px solid var(--edge); border-top:4px solid var(--tint); border-radius:8px;
  padding:12px 18px }
.card b { font-size:38px; line-height:1.15; color:var(--tint); font-variant-numeric:tabular-nums }
.card p { margin:0 }
.clean { --tint:var(--clean) }
.attacked { --tint:var(--attacked) }
.certified { --tint:var(--certified) }
.open { --tint:var(--soft) }
.wrong { --tint:var(--wrong) }
.panels { display:grid; grid-template-columns:repeat(auto-fit,minmax(420px,1fr)); gap:26px 34px }
figure { margin:0 }
svg { width:100%; height:auto; font-size:11px; overflow:visible }
svg text { fill:var(--soft) }
svg .title { fill:var(--ink); font-size:13px; font-weight:600 }
svg .grid { stroke:var(--edge) }
.legend { list-style:none; padding:0; margin:0 0 14px; display:flex; flex-wrap:wrap; gap:4px
  22px; font-size:13px }
.legend i { display:inline-block; width:11px; height:11px; border-radius:3px;
  background:var(--tint); margin-right:6px }
.images { display:flex; flex-wrap:wrap; gap:12px }
.image { border:1px solid var(--edge); border-bottom:4px solid var(--tint); border-radius:8px;
  padding:8px; font-size:13px; background:var(--wash) }
.image p { margin:6px 0 0 }
.image b { color:var(--tint) }
.image img { width:88px; height:88px; image-rendering:pixelated; border-radius:4px;
  margin-right:4px; object-fit:contain; background:#000 }
pre { background:var(--wash); border:1px solid var(--edge); border-radius:8px; padding:12px 16px;
  overflow-x:auto; font:13px/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace }
.settings { display:grid; grid-template-columns:repeat(auto-fit,minmax(320px,1fr)); gap:22px 40px
  }
table { border-collapse:collapse; width:100%; font-size:13px }
th { text-align:left; font-weight:500; color:var(--soft); padding:3px 16px 3px 0;
  vertical-align:top; white-space:nowrap }
td { padding:3px 0; overflow-wrap:anywhere }
tr { border-bottom:1px solid var(--edge) }
@media (max-width:520px) { .panels { grid-template-columns:1fr } }
"""
