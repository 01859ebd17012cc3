(() => {
  const bar = document.querySelector("#filter");
  if (!bar) return;
  bar.hidden = false;
  const probes = [...document.querySelectorAll(".probe")].map((card) => [card, card.textContent.toLowerCase()]);
  const count = bar.querySelector("output");
  const search = bar.querySelector("input[type=search]");
  const update = () => {
    const kind = bar.querySelector("input[name=kind]:checked").value;
    const text = search.value.trim().toLowerCase();
    let num = 0;
    for (const [card, content] of probes) {
      const is_shown = (!kind || card.dataset.kind === kind) && (!text || content.includes(text));
      card.hidden = !is_shown;
      num += is_shown;
    }
    count.textContent = `${num} shown`;
  };
  bar.addEventListener("input", update);
  update();
})();
