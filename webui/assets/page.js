// What the page does in the browser: keys, the theme, the address of a run.
(() => {
  "use strict";

  const press = (id) => {
    const button = document.getElementById(id);
    if (button && !button.disabled && button.offsetParent !== null) button.click();
  };

  document.addEventListener("click", (event) => {
    const show = event.target.closest("[data-show]");
    if (show) document.getElementById(show.dataset.show)?.scrollIntoView({ block: "center" });
    if (event.target.closest("#theme-switch")) {
      setTheme(document.body.classList.contains("dark") ? "light" : "dark");
    }
  });

  // Half a name typed into a list is dropped: what was chosen before comes back.
  let chosen = "";
  const noteChoice = (event) => {
    if (event.target.matches?.("[role=combobox]")) chosen = event.target.value;
  };
  const leave = (field) => {
    if (field.matches("[role=combobox]") && field.value !== chosen) {
      field.value = chosen;
      field.dispatchEvent(new Event("input", { bubbles: true }));
    }
    setTimeout(() => field.blur()); // once the list has heard of the name
  };
  document.addEventListener("focusin", noteChoice);
  document.addEventListener("keyup", (event) => event.key === "Enter" && noteChoice(event));
  document.addEventListener("mousedown", (event) => {
    const option = event.target.closest?.("[role=option][aria-label]");
    if (option) chosen = option.getAttribute("aria-label");
  }, true);

  document.addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      press("generate");
    } else if (event.key === "Escape") {
      // In a field it leaves the field, as a habit of the keyboard; only beside fields it cancels.
      if (event.target.matches?.("input, textarea, select")) leave(event.target);
      else press("cancel");
    }
  });

  const setTheme = (name) => {
    localStorage.setItem("sdlora-theme", name);
    document.body.classList.toggle("dark", name === "dark");
  };

  // The run on screen is in the address: a reload, a bookmark or another tab shows the same one.
  const keepAddress = () => {
    const name = document.querySelector("#run-card [data-run]")?.dataset.run;
    const address = new URL(location.href);
    if (!name || address.searchParams.get("run") === name) return;
    address.searchParams.set("run", name);
    history.replaceState(null, "", address);
  };

  // What the server drew goes once the page shows as much, and if anything fails, all the same.
  const opened = () => {
    const first = document.getElementById("opening");
    const ready = first?.querySelector("[data-run]") ? "#run-card [data-run]" : "gradio-app #prompt";
    if (first && document.querySelector(ready)) first.remove();
  };

  // That a run is queued is of no interest once it has ended.
  const closeQueued = () => {
    for (const notice of document.querySelectorAll("[data-queued]:not([data-closed])")) {
      const cards = [...document.querySelectorAll('[data-run][data-live="false"]')];
      if (!cards.some((card) => card.dataset.run === notice.dataset.queued)) continue;
      notice.setAttribute("data-closed", "");
      notice.closest(".answer")?.querySelector("button.close")?.click();
    }
  };

  const begin = () => {
    setTimeout(() => document.getElementById("opening")?.remove(), 20_000);
    const theme = localStorage.getItem("sdlora-theme");
    let themed = !theme;
    new MutationObserver(() => {
      // Gradio sets the system's theme once it has mounted; the user's own choice comes after it.
      if (!themed && document.querySelector("#prompt")) {
        themed = true;
        setTheme(theme);
      }
      keepAddress();
      closeQueued();
      opened();
    }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["data-run", "data-live"] });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
