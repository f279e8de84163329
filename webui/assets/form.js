// Forms of settings: groups that open, a search over all of them, numbers by key, marks on what is
// wrong. A field is `.setting`; everything else that is looked for here is ours as well.
(() => {
  "use strict";

  const TRIES = 40;
  const panelOf = (element) => element.closest("[role=tabpanel]");
  const titleOf = (group) => group.querySelector("[data-group]");
  const open = (title, is) => title.setAttribute("aria-expanded", String(is));
  const control = (field) => field.querySelector("input, textarea");
  const nameOf = (field) => field.innerText.trim().split("\n")[0];

  const openGroup = (field) => {
    const group = field.closest(".group");
    if (group) open(titleOf(group), true);
  };
  // Brings a field into view, whatever it stands in.
  const reveal = (field) => {
    openGroup(field);
    field.scrollIntoView({ block: "center" });
    control(field)?.focus({ preventScroll: true });
  };

  // Search: by every word of a name and its sentence; a group shows its hits.
  const matches = (field, words) => {
    const text = field.textContent.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const find = (search) => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const panel = panelOf(search);
    panel.toggleAttribute("data-finding", words.length > 0);
    let hits = 0;
    for (const group of panel.querySelectorAll(".group")) {
      const fields = [...group.querySelectorAll(".setting")];
      for (const field of fields) field.toggleAttribute("data-miss", !matches(field, words));
      const found = fields.filter((field) => !field.hasAttribute("data-miss")).length;
      group.toggleAttribute("data-miss", !found);
      hits += found;
    }
    const beside = words.length
      ? [...panel.querySelectorAll(".setting")].filter((field) => !field.closest(".group") && matches(field, words))
      : [];
    tell(search, beside, words.length > 0 && !hits);
  };

  // What the groups do not show: that nothing is found, or that it stands outside them.
  const tell = (search, beside, none) => {
    const said = search.parentElement.querySelector("[data-found]");
    said.replaceChildren();
    if (!beside.length) {
      said.textContent = none ? `No setting matches “${search.value.trim()}”.` : "";
      return;
    }
    said.append("Above: ");
    for (const field of beside) {
      const link = document.createElement("button");
      link.type = "button";
      link.className = "act";
      link.textContent = nameOf(field);
      link.addEventListener("click", () => reveal(field));
      said.append(link, " ");
    }
  };

  // Numbers: arrow keys change the last digit that is written, exactly.
  const stepped = (text, by) => {
    const number = text.trim().match(/^(-?\d+)(?:\.(\d+))?$/);
    if (!number) return null;
    const [, whole, decimals = ""] = number;
    const units = String(BigInt(whole + decimals) + BigInt(by));
    const digits = units.replace("-", "").padStart(decimals.length + 1, "0");
    const at = digits.length - decimals.length;
    return (units.startsWith("-") ? "-" : "") + digits.slice(0, at) + (decimals && `.${digits.slice(at)}`);
  };
  const onArrow = (event) => {
    const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    const box = direction && event.target.closest?.(".number input, .number textarea");
    if (!box || event.ctrlKey || event.metaKey || event.altKey) return;
    const signed = box.closest(".signed");
    const next = stepped(box.value || box.placeholder, direction * (event.shiftKey ? 10 : 1));
    if (next === null || (next.startsWith("-") && !signed)) return;
    event.preventDefault();
    box.value = next;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // Marks: a notice carries {id of a field: error message}, shown under the field.
  const unmark = (field) => {
    if (!field?.hasAttribute("data-wrong")) return;
    field.removeAttribute("data-wrong");
    field.querySelector(".wrong")?.remove();
    const box = control(field);
    box?.removeAttribute("aria-invalid");
    box?.removeAttribute("aria-describedby");
  };
  const mark = (field, sentence) => {
    unmark(field);
    const said = document.createElement("p");
    said.className = "wrong";
    said.id = `${field.id}-wrong`;
    said.textContent = sentence;
    field.append(said);
    field.setAttribute("data-wrong", "");
    control(field)?.setAttribute("aria-invalid", "true");
    control(field)?.setAttribute("aria-describedby", said.id);
  };
  // The fields of a fold that was never open are not on the page yet: it is opened by its title.
  const openFold = (id) => {
    const fold = document.getElementById(id);
    if (fold && !fold.querySelector(".find-setting")?.offsetParent) fold.querySelector("button")?.click();
  };
  const markAll = (notice, wrong, fold, triesLeft) => {
    const fields = Object.keys(wrong).map((id) => document.getElementById(id));
    if (fields.some((field) => !field || !(field.closest(".group") ?? field).offsetParent) && triesLeft) {
      if (triesLeft === TRIES) openFold(fold);
      setTimeout(markAll, 50, notice, wrong, fold, triesLeft - 1);
      return;
    }
    const there = fields.filter(Boolean);
    for (const field of there) {
      openGroup(field);
      mark(field, wrong[field.id]);
    }
    if (there.length) reveal(there[0]);
    // A sentence whose field is not on the page goes into the notice.
    for (const [id, sentence] of Object.entries(wrong)) {
      if (document.getElementById(id)) continue;
      const line = document.createElement("p");
      line.textContent = sentence;
      notice.previousElementSibling?.append(line);
    }
  };
  const readMarks = () => {
    const notice = document.querySelector("[data-marks]:not([data-read])");
    if (!notice) return;
    notice.setAttribute("data-read", "");
    for (const field of panelOf(notice).querySelectorAll("[data-wrong]")) unmark(field);
    markAll(notice, JSON.parse(notice.dataset.marks), notice.dataset.fold, TRIES);
  };

  // Other values stand in all fields now: nothing that was said of the old ones holds.
  const forget = (panel) => {
    for (const field of panel.querySelectorAll("[data-wrong]")) unmark(field);
    for (const notice of panel.querySelectorAll("[data-marks]")) {
      notice.closest(".answer")?.querySelector("button.close")?.click();
    }
  };

  document.addEventListener("click", (event) => {
    const reset = event.target.closest(".resets button:not(.unseen)");
    if (reset) forget(panelOf(reset));
    const title = event.target.closest("[data-group]");
    if (title) open(title, title.getAttribute("aria-expanded") !== "true");
  });
  document.addEventListener("input", (event) => {
    if (event.target.matches(".find-setting")) find(event.target);
    unmark(event.target.closest(".setting"));
  });
  document.addEventListener("sdlora-changed", (event) => {
    for (const id of event.detail) unmark(document.getElementById(id));
  });
  document.addEventListener("focusin", (event) => {
    const field = event.target.closest(".number");
    if (field) event.target.inputMode = field.matches(".signed") ? "text" : "decimal";
  });
  document.addEventListener("keydown", onArrow);
  new MutationObserver(readMarks).observe(document, { childList: true, subtree: true });
})();
