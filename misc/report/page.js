"use strict";
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const controls = one("#controls"), cards = all("#cards .card"), state = { show: "", class: "" };
  controls.hidden = false;

  one("#fade").addEventListener("input", (event) => {
    one("output", controls).textContent = event.target.value + "%";
    document.documentElement.style.setProperty("--fade", event.target.value / 100);
  });

  const visible = () => cards.filter((card) => !card.hidden);
  const filter = () => {
    const has = (list, value) => !value || list.split(" ").includes(value);
    for (const card of cards) card.hidden = !has(card.dataset.groups, state.show) || !has(card.dataset.classes, state.class);
    one("#shown").textContent = `${visible().length} of ${cards.length} shown`;
  };
  for (const group of all(".buttons", controls)) {
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of all("button", group)) other.setAttribute("aria-pressed", String(other === button));
      state[group.dataset.kind] = button.dataset.value;
      filter();
    });
  }
  filter();

  // A card enlarged; arrow keys go to the next one.
  const dialog = document.body.appendChild(document.createElement("dialog"));
  let open = null;
  const enlarge = (card) => {
    open = card;
    dialog.innerHTML = '<button class="close" type="button">close</button>' + card.innerHTML;
    for (const image of all("img", dialog)) image.loading = "eager";
    dialog.style.setProperty("--picture", card.style.getPropertyValue("--picture"));
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("close", () => open.focus());
  dialog.addEventListener("click", (event) => { if (event.target.matches("dialog, .close")) dialog.close(); });
  document.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (card && event.target.closest(".tile")) enlarge(card);
  });
  document.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key], list = visible();
    if (dialog.open && move) enlarge(list[list.indexOf(open) + move] ?? open);
    else if (event.key === "Enter" && event.target.matches(".card")) {
      enlarge(event.target);
      event.preventDefault();  // else it presses the button that has the focus now
    }
  });
})();
