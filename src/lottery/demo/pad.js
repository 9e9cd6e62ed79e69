// The pad of `lottery demo`; gradio runs this with the component's `element` and `props`.
// Its value is a PNG of the canvas, ink in the alpha channel, so that it does not matter which colour that has.
const canvas = element.querySelector("canvas"), pad = element.querySelector(".pad"), pen = canvas.getContext("2d");
let last = null, waiting = false;

function tell() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    props.value = pad.classList.contains("empty") ? "" : canvas.toDataURL();
  });
}

function stroke(event) {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  for (const each of event.getCoalescedEvents?.().concat(event) ?? [event]) {
    const here = [(each.clientX - box.left) * scale, (each.clientY - box.top) * scale];
    pen.beginPath();
    pen.moveTo(...(last ?? here));
    pen.lineTo(...here);
    pen.stroke();
    last = here;
  }
  pad.classList.remove("empty");
  tell();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId); // a stroke that leaves the pad goes on
  const width = canvas.width * canvas.dataset.pen, colour = getComputedStyle(canvas).color;
  Object.assign(pen, { lineWidth: width, lineCap: "round", strokeStyle: colour });
  last = null;
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => event.buttons & 1 && last && stroke(event));
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
element.querySelector("button").addEventListener("click", () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  pad.classList.add("empty");
  tell();
});
