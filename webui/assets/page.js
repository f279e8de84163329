// What the page does in the browser: keys, the picture viewer, the address of a run.
(() => {
  "use strict";

  const press = (id) => {
    const button = document.getElementById(id);
    if (button && !button.disabled && button.offsetParent !== null) button.click();
  };

  // The viewer: one dialog for every picture of the grid it was opened from.
  const viewer = document.createElement("dialog");
  viewer.className = "viewer";
  viewer.setAttribute("aria-label", "Picture");
  viewer.innerHTML =
    '<img alt=""><p></p><nav><button type="button" data-move="-1" aria-label="Previous">←</button>' +
    '<a download>Save</a><button type="button" data-move="1" aria-label="Next">→</button>' +
    '<button type="button" data-move="0">Close</button></nav>';
  let shown = null;
  const show = (link) => {
    shown = link;
    const image = viewer.querySelector("img");
    image.src = link.href;
    image.alt = link.dataset.caption;
    viewer.querySelector("p").textContent = `${link.dataset.caption}  ·  ${link.dataset.note}`;
    const save = viewer.querySelector("a");
    save.href = link.href;
    save.download = `${link.dataset.note.replace(/\W+/g, "_")}.png`;
    if (!viewer.open) viewer.showModal();
  };
  const move = (by) => {
    if (!by) return viewer.close();
    const links = [...shown.closest(".pictures").querySelectorAll("a.picture")];
    show(links[(links.indexOf(shown) + by + links.length) % links.length]);
  };
  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-move]");
    if (button) move(Number(button.dataset.move));
    else if (event.target === viewer) viewer.close();
  });

  document.addEventListener("click", (event) => {
    const picture = event.target.closest("a.picture");
    if (picture && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      show(picture);
    }
    if (event.target.closest("#theme-switch")) {
      setTheme(document.body.classList.contains("dark") ? "light" : "dark");
    }
  });

  document.addEventListener("keydown", (event) => {
    if (viewer.open) {
      if (event.key === "ArrowLeft") move(-1);
      if (event.key === "ArrowRight") move(1);
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      press("generate");
    } else if (event.key === "Escape") {
      press("cancel");
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

  const begin = () => {
    document.body.append(viewer);
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
      opened();
    }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["data-run"] });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
