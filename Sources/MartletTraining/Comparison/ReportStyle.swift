/// The report's style sheet: light and dark by the reader's own setting, one column on a phone, no font but the system's.
///
/// The eight colours are Okabe and Ito's (chosen to stay apart for colour-blind readers), darkened or lightened for contrast with
/// the background; shapes and dashes carry the same distinctions.
enum ReportStyle {
  static let css = """
    :root{color-scheme:light dark;--page:#f6f6f3;--card:#fff;--ink:#1b1f24;--muted:#5c6570;--rule:#e2e4e6;--grid:#eceded;--soft:#f1f3f4;--accent:#0b62a3;--warn:#a83a00;--good:#0b6e4f;
    --c0:#0072b2;--c1:#c95200;--c2:#00875f;--c3:#b04f8a;--c4:#b07d00;--c5:#2b93cf;--c6:#5b5f66;--c7:#7a7a00}
    @media (prefers-color-scheme:dark){:root{--page:#121417;--card:#1a1d21;--ink:#e7eaed;--muted:#9da6b0;--rule:#2f343a;--grid:#272b30;--soft:#22262b;--accent:#6cb8ef;--warn:#ff9a5c;--good:#4fce9e;
    --c0:#4aa3df;--c1:#ff8b45;--c2:#2fc799;--c3:#e391c4;--c4:#f0b93a;--c5:#8fd0ff;--c6:#b4b9c0;--c7:#d6d255}}
    *{box-sizing:border-box}
    body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
    main{max-width:1120px;margin:0 auto;padding:40px 24px 64px}
    h1{font-size:clamp(1.6rem,4.2vw,2.3rem);line-height:1.18;margin:.15em 0 .35em;letter-spacing:-.015em;text-wrap:balance}
    h2{font-size:1.2rem;margin:48px 0 14px;letter-spacing:-.005em}
    h3{font-size:1rem;margin:0 0 4px}
    p{margin:0 0 .7em}
    .kicker{color:var(--muted);font-size:.82rem;margin:0;letter-spacing:.06em;text-transform:uppercase}
    .lead{font-size:1.08rem;color:var(--muted);max-width:70ch}
    .fair{list-style:none;padding:0;margin:18px 0 0;display:grid;gap:4px 28px;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));font-size:.94rem}
    .fair li{padding-left:1.6em;text-indent:-1.6em}
    .fair li::before{content:"✓";display:inline-block;width:1.6em;text-indent:0;color:var(--good);font-weight:700}
    .fair li.broken::before{content:"!";color:var(--warn)}
    .card{background:var(--card);border:1px solid var(--rule);border-radius:12px}
    .verdict{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));overflow:hidden}
    .verdict>div{padding:16px 20px;box-shadow:1px 1px 0 0 var(--rule)}
    .verdict p{margin:0;font-size:.96rem}
    .verdict h3{color:var(--accent);font-size:.85rem}
    .scroll{overflow-x:auto}
    table{border-collapse:collapse;width:100%;font-size:.93rem;font-variant-numeric:tabular-nums}
    th,td{padding:9px 14px;text-align:right;white-space:nowrap}
    th:first-child,td:first-child{text-align:left}
    thead th{color:var(--muted);font-weight:600;font-size:.82rem;border-bottom:1px solid var(--rule);vertical-align:bottom;white-space:normal}
    tbody th{font-weight:600;text-align:left}
    tbody tr+tr>*{border-top:1px solid var(--grid)}
    td.best{font-weight:700}
    td.best::after,.star{content:"★";color:var(--good);font-size:.78em;margin-left:.35em}
    td.slot::after{content:"★";visibility:hidden;font-size:.78em;margin-left:.35em}
    td.warn{color:var(--warn);white-space:normal}
    th[aria-sort] .s{all:unset;cursor:pointer;text-align:inherit}
    th .s:focus-visible,.chip:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
    th[aria-sort=ascending] .s::after{content:" ↑"}th[aria-sort=descending] .s::after{content:" ↓"}
    .note{color:var(--muted);font-size:.88rem;margin:10px 2px 0}
    .legend{display:flex;flex-wrap:wrap;gap:8px;align-items:center;margin:0 0 14px}
    .legend .key{color:var(--muted);font-size:.86rem;display:inline-flex;align-items:center;gap:6px;margin-left:8px}
    .legend svg{width:18px;height:18px;flex:none}.legend .key svg{width:40px}
    .chip{font:inherit;font-size:.9rem;color:inherit;background:var(--card);border:1px solid var(--rule);border-radius:99px;padding:3px 13px 3px 8px;display:inline-flex;align-items:center;gap:6px}
    .js .chip{cursor:pointer}.js .chip:hover{border-color:var(--muted)}
    .chip[aria-pressed=false]{opacity:.45;text-decoration:line-through}
    .plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:18px}
    .plot{margin:0;padding:18px 18px 16px;display:flex;flex-direction:column;min-width:0}
    .plot figcaption{font-size:.9rem;color:var(--muted);margin-top:8px}
    .plot figcaption p:last-child{margin:0}
    .switch{display:flex;flex-wrap:wrap;row-gap:8px}
    .switch>input{position:absolute;opacity:0;pointer-events:none}
    .switch>label{font-size:.84rem;padding:3px 11px;border:1px solid var(--rule);margin-left:-1px;cursor:pointer;color:var(--muted);background:var(--card)}
    .switch>input:first-of-type+label{border-radius:7px 0 0 7px;margin-left:0}.switch>label:last-of-type{border-radius:0 7px 7px 0}
    .switch>input:checked+label{color:var(--ink);background:var(--soft);font-weight:600}
    .switch>input:focus-visible+label{outline:2px solid var(--accent);outline-offset:1px}
    .switch>.pane{display:none;flex:0 0 100%;min-width:0}
    .switch>input:nth-of-type(1):checked~.pane:nth-of-type(1),.switch>input:nth-of-type(2):checked~.pane:nth-of-type(2),.switch>input:nth-of-type(3):checked~.pane:nth-of-type(3){display:block}
    .side{padding:18px 22px}.side .note{margin:0 0 14px}.side ol{margin:.3em 0 1em;padding-left:1.3em}.side li{margin:.1em 0}.side ol,.side p{font-size:.94rem}.side p.note{font-size:.88rem}
    svg{display:block;width:100%;height:auto;overflow:visible}
    svg text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink)}
    svg .tick{fill:var(--muted);font-size:12.5px;font-variant-numeric:tabular-nums}svg .title{fill:var(--muted)}svg .name{font-weight:600}
    .grid{stroke:var(--grid)}.axis{stroke:var(--muted);stroke-opacity:.6}
    .line{fill:none;stroke:var(--arm);stroke-width:2.4;stroke-linejoin:round;stroke-linecap:round}
    .thin{fill:none;stroke:var(--arm);stroke-width:1;stroke-opacity:.28;stroke-linejoin:round}
    .dashed{stroke-dasharray:6 5}.thin.dashed{stroke-dasharray:3 3}
    .marker{fill:var(--card);stroke:var(--arm);stroke-width:2;stroke-linejoin:round}.marker.filled{fill:var(--arm)}
    .bar{fill:none;stroke:var(--arm);stroke-width:1.5;stroke-opacity:.75}.cross{fill:none;stroke:var(--arm);stroke-width:2.4;stroke-linecap:round}
    .hair{fill:none;stroke:var(--arm);stroke-opacity:.4}
    .front{fill:none;stroke:var(--muted);stroke-width:1.4;stroke-dasharray:2 4;stroke-linecap:round}.halo{fill:none;stroke:var(--muted);stroke-width:1.2}
    .off{display:none}
    .mark:hover .marker{stroke-width:3.2}
    #tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--page);font-size:.84rem;line-height:1.35;padding:5px 9px;border-radius:6px;max-width:min(300px,90vw);opacity:0;transition:opacity .1s}
    details{padding:0 20px}details+details{border-top:1px solid var(--rule)}
    summary{cursor:pointer;padding:13px 0;font-weight:600}
    details>div{padding-bottom:16px}
    dl{display:grid;grid-template-columns:max-content 1fr;gap:6px 20px;margin:0;font-size:.94rem}dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
    code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;background:var(--soft);padding:2px 6px;border-radius:5px;overflow-wrap:anywhere}
    footer{color:var(--muted);font-size:.86rem;margin-top:32px}
    @media (max-width:640px){main{padding:24px 14px 48px}h2{margin-top:36px}.plot{padding:14px 10px 12px}.plot figcaption{padding:0 4px}svg text,svg .tick{font-size:14.5px}th,td{padding:8px 10px}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:8px}.legend .key{margin-left:0}.verdict>div{padding:14px 16px}details{padding:0 14px}}
    @media print{body{background:#fff}main{padding:0;max-width:none}.card,.plot{break-inside:avoid}.switch>label{display:none}#tip{display:none}}
    """

  /// The colours of the first `count` mixers, as rules for the classes `a0`, `a1`, …
  static func armColours(_ count: Int) -> String {
    (0..<count).map { ".a\($0){--arm:var(--c\($0 % 8))}" }.joined()
  }
}
