"use strict";
(() => {
  const root = document.documentElement;
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light and dark: the system's choice until the button is pressed.
  const theme = one("#theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = isDark() ? "light" : "dark"; };
  theme.hidden = false;
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
  nameTheme();

  const box = one("#cards"), controls = one("#controls"), slider = one("#fade");
  if (!box || !controls) return;
  controls.hidden = false;
  const cards = all(".card", box);
  const state = { show: "", class: "", sort: "" };
  for (const group of all(".buttons", controls)) {
    const pressed = one('[aria-pressed="true"]', group);
    state[group.dataset.kind] = pressed ? pressed.dataset.value : "";
  }

  const setFade = (percent) => {
    slider.value = percent;
    one("output", controls).textContent = percent + "%";
    root.style.setProperty("--fade", percent / 100);
  };
  slider.addEventListener("input", () => setFade(Number(slider.value)));

  const words = (card, key) => (card.dataset[key] || "").split(" ");
  const score = (card) => card.dataset.score === undefined ? -1 : Number(card.dataset.score);
  const byName = (a, b) => a.dataset.name < b.dataset.name ? -1 : a.dataset.name > b.dataset.name ? 1 : 0;
  const orders = {
    name: byName,
    down: (a, b) => score(b) - score(a) || byName(a, b),
    up: (a, b) => score(a) - score(b) || byName(a, b),
  };
  const visible = () => all(".card:not([hidden])", box);
  const apply = () => {
    for (const card of cards) {
      card.hidden = (state.show && !words(card, "groups").includes(state.show)) ||
        (state.class && !words(card, "classes").includes(state.class));
    }
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
  const dialog = document.createElement("dialog");
  document.body.append(dialog);
  let open = null;
  const enlarge = (card) => {
    open = card;
    const close = document.createElement("button");
    close.type = "button";
    close.className = "close";
    close.textContent = "close";
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(close, ...[...card.children].map((part) => part.cloneNode(true)));
    for (const image of all("img", dialog)) image.loading = "eager";
    dialog.style.setProperty("--picture", card.style.getPropertyValue("--picture"));
    dialog.setAttribute("aria-label", card.getAttribute("aria-label"));
    if (!dialog.open) dialog.showModal();
  };
  dialog.addEventListener("close", () => { if (open) open.focus(); });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  box.addEventListener("click", (event) => {
    if (event.target.closest(".tile")) enlarge(event.target.closest(".card"));
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target === slider) return;
    const card = dialog.open ? open : event.target.closest && event.target.closest(".card");
    if (!card) return;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    if (event.key in steps) {
      const list = visible();
      const next = list[list.indexOf(card) + steps[event.key]];
      if (next && dialog.open) enlarge(next);
      else if (next) next.focus();
      event.preventDefault();
    } else if (event.key === "Enter" && !dialog.open) {
      enlarge(card);
      event.preventDefault();
    } else if (/^[0-9]$/.test(event.key)) {
      setFade(event.key === "0" ? 0 : event.key === "9" ? 100 : 10 * Number(event.key));
    }
  });
})();
