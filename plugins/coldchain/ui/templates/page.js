"use strict";
// A strip is one stop of the Tab key; arrow keys, Home and End move along it. What a piece stands for is said below.
const said = document.getElementById("said");
for (const strip of document.querySelectorAll("[data-strip]")) {
  const cells = [...strip.querySelectorAll("rect")];
  const say = (event) => { if (said && event.target.tagName === "rect") said.textContent = event.target.getAttribute("aria-label"); };
  strip.addEventListener("focusin", say);
  strip.addEventListener("pointerover", say);
  strip.addEventListener("keydown", (event) => {
    const at = cells.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: cells.length - 1 }[event.key];
    if (at < 0 || to === undefined || !cells[to]) return;
    event.preventDefault();
    cells[at].setAttribute("tabindex", "-1");
    cells[to].setAttribute("tabindex", "0");
    cells[to].focus();
  });
}
// Airflow shows the page in a frame that may not navigate its parent: the parent's own document follows the link.
for (const link of document.querySelectorAll("a[data-out]")) {
  link.addEventListener("click", (event) => {
    if (window.parent === window || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const twin = window.parent.document.createElement("a");
    twin.href = link.href;
    window.parent.document.body.append(twin);
    twin.click();
    twin.remove();
  });
}
const form = document.getElementById("run");
if (form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = form.querySelector("output");
    const conf = { tables: [form.dataset.table], mode: form.elements.mode.value };
    for (const name of ["start", "end"]) if (form.elements[name].value) conf[name] = form.elements[name].value;
    said.textContent = "asking Airflow …";
    try {
      const answer = await fetch(form.dataset.url, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ logical_date: null, conf }),
      });
      const body = await answer.json();
      said.textContent = answer.ok ? `run ${body.dag_run_id} is ${body.state}`
        : `Airflow refused (${answer.status}): ${typeof body.detail === "string" ? body.detail : JSON.stringify(body.detail)}`;
    } catch (error) {
      said.textContent = `Airflow did not answer: ${error.message}`;
    }
  });
}
