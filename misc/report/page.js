"use strict";
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light and dark: the system's choice until the button is pressed.
  const theme = one("#theme"), system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
  const nameTheme = () => { theme.textContent = isDark() ? "light" : "dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  system.addEventListener("change", nameTheme);
  nameTheme();

  // The slider fades the masks.
  const box = one("#cards"), controls = one("#controls"), slider = one("#fade");
  const cards = all(".card", box);
  const setFade = (percent) => {
    slider.value = percent;
    one("output", controls).textContent = percent + "%";
    root.style.setProperty("--fade", percent / 100);
  };
  controls.hidden = false;
  slider.addEventListener("input", () => setFade(Number(slider.value)));

  // Filters and orders.
  const state = { show: "", class: "", sort: "" };
  const has = (card, kind, value) => !value || card.dataset[kind].split(" ").includes(value);
  const score = (card) => Number(card.dataset.score ?? -1);
  const byName = (a, b) => a.dataset.name < b.dataset.name ? -1 : 1;
  const orders = {
    name: byName,
    down: (a, b) => score(b) - score(a) || byName(a, b),
    up: (a, b) => score(a) - score(b) || byName(a, b),
  };
  const visible = () => all(".card:not([hidden])", box);
  const apply = () => {
    for (const card of cards) card.hidden = !has(card, "groups", state.show) || !has(card, "classes", state.class);
    if (orders[state.sort]) box.append(...[...cards].sort(orders[state.sort]));
    one("#shown").textContent = `${visible().length} of ${cards.length} shown.`;
  };
  for (const group of all(".buttons", controls)) {
    group.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      for (const other of all("button", group)) other.setAttribute("aria-pressed", String(other === button));
      state[group.dataset.kind] = button.dataset.value;
      apply();
    });
  }
  apply();

  // A card enlarged.
  const dialog = document.body.appendChild(document.createElement("dialog"));
  let open = null;
  const enlarge = (card) => {
    open = card;
    const close = document.createElement("button");
    close.className = "close";
    close.textContent = "close";
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(close, ...[...card.children].map((part) => part.cloneNode(true)));
    for (const image of all("img", dialog)) image.loading = "eager";
    dialog.style.setProperty("--picture", card.style.getPropertyValue("--picture"));
    dialog.setAttribute("aria-label", card.getAttribute("aria-label"));
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("close", () => open.focus());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  box.addEventListener("click", (event) => { if (event.target.closest(".tile")) enlarge(event.target.closest(".card")); });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === slider) return;
    const card = dialog.open ? open : event.target.closest?.(".card");
    if (!card) return;
    const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (move) {
      const list = visible(), next = list[list.indexOf(card) + move];
      if (next && dialog.open) enlarge(next);
      else if (next) next.focus();
      event.preventDefault();
    } else if (event.key === "Enter" && !dialog.open) {
      enlarge(card);
      event.preventDefault();
    } else if (/^[0-9]$/.test(event.key)) {
      setFade(event.key === "9" ? 100 : 10 * Number(event.key));
    }
  });
})();
