"""The HTML around a result page; `page` puts its parts where the comments in capitals are."""

#: Shared with other pages, which may set the colours anew.
STYLE = """:root { color-scheme: dark;
  --ink: #e4e7eb; --dim: #9aa3ad; --line: #30353c; --back: #16181c; --card: #1e2126; --accent: #7db7ff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1600px; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem) 6rem;
  background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .3rem 0 .8rem; color: var(--dim); max-width: 80ch; }
.note { color: #ffd479; }
.figures { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
video, img { display: block; width: 100%; height: auto; background: #000; }
figcaption { padding: .4rem .7rem; font-size: .9rem; }
figcaption small { display: block; color: var(--dim); }
.table { overflow-x: auto; margin-top: .8rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding: .3rem 0; }
th, td { padding: .35rem .9rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  padding: .3rem .9rem; min-width: 5rem; cursor: pointer; }
button:hover, button:focus-visible { border-color: var(--accent); }
"""

PAGE = (
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title><!--TITLE--></title>
<style>
"""
    + STYLE
    + """nav { position: fixed; inset: auto 0 0 0; display: flex; gap: .8rem; align-items: center;
  padding: .6rem clamp(.8rem, 3vw, 2.5rem);
  background: #101215f2; border-top: 1px solid var(--line); }
nav[hidden] { display: none; }
input[type=range] { flex: 1; accent-color: var(--accent); min-width: 0; }
output { color: var(--dim); font-variant-numeric: tabular-nums; min-width: 4rem; text-align: right; }
</style>
</head>
<body>
<header><h1><!--TITLE--></h1><p><!--TEXT--></p><!--NOTE--></header>
<main>
<!--BODY-->
</main>
<nav hidden aria-label="All videos">
<button type="button" id="toggle">Play</button>
<input type="range" id="scrub" min="0" max="1000" value="0" aria-label="Position">
<output id="time">0.00 s</output>
</nav>
<script>
"use strict";
// The longest video is the clock; the others follow it, corrected only when they drift, because seeking costs frames.
const videos = [...document.querySelectorAll("video")];
const [toggle, scrub, time] = ["toggle", "scrub", "time"].map(id => document.getElementById(id));
const clock = () => videos.reduce((best, video) => (video.duration || 0) > (best.duration || 0) ? video : best, videos[0]);
let playing = false;
function place(seconds) {
  for (const video of videos)
    if (video.duration) video.currentTime = Math.min(seconds, video.duration - 1e-3);
}
function setPlaying(on) {
  playing = on;
  toggle.textContent = on ? "Pause" : "Play";
  for (const video of videos) on ? video.play().catch(() => {}) : video.pause();
  if (!on) place(clock().currentTime);
}
function follow() {
  const lead = clock();
  if (playing && lead.duration) {
    for (const video of videos)
      if (video !== lead && video.duration && Math.abs(video.currentTime - lead.currentTime % video.duration) > 0.12)
        video.currentTime = lead.currentTime % video.duration;
    scrub.value = 1000 * lead.currentTime / lead.duration;
  }
  time.textContent = (lead.currentTime || 0).toFixed(2) + " s";
  requestAnimationFrame(follow);
}
if (videos.length) {
  document.querySelector("nav").hidden = false;
  toggle.addEventListener("click", () => setPlaying(!playing));
  scrub.addEventListener("input", () => { setPlaying(false); place(scrub.value / 1000 * (clock().duration || 0)); });
  document.addEventListener("keydown", event => {
    if (event.code === "Space" && event.target === document.body) { event.preventDefault(); setPlaying(!playing); }
  });
  setPlaying(true);
  follow();
}
</script>
</body>
</html>
"""
)
