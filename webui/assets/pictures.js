// Pictures: one large at a time, their settings taken over, and files dropped anywhere on the page.
(() => {
  "use strict";

  const tell = (id, text) => {
    const box = document.querySelector(`#${id} :is(textarea, input)`);
    box.value = text; // Gradio listens to the event, not to the value
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // The viewer: one dialog for every picture of the grid it was opened from.
  const viewer = document.createElement("dialog");
  viewer.className = "viewer";
  viewer.setAttribute("aria-label", "Picture");
  viewer.innerHTML =
    '<img alt=""><p></p><nav><button type="button" data-move="-1" aria-label="Previous">←</button>' +
    '<button type="button" data-take>Use these settings</button><a download>Save</a>' +
    '<button type="button" data-move="0">Close</button>' +
    '<button type="button" data-move="1" aria-label="Next">→</button></nav>';
  const part = (selector) => viewer.querySelector(selector);
  let shown = null;
  const show = (link) => {
    shown = link;
    part("img").src = link.href;
    part("img").alt = link.dataset.caption;
    part("p").textContent = `${link.dataset.caption}  ·  ${link.dataset.note}`;
    part("a").href = link.href;
    part("a").download = link.dataset.name;
    part("[data-take]").hidden = link.dataset.reuse === undefined;
    if (!viewer.open) viewer.showModal();
  };
  const move = (by) => {
    if (!by) return viewer.close();
    const links = [...document.querySelectorAll("a.picture")].filter(
      (link) => link.href === shown.href || link.closest(".pictures") === shown.closest(".pictures"),
    );
    const at = links.findIndex((link) => link.href === shown.href);
    return show(links[(at + by + links.length) % links.length]);
  };

  let asked = 0; // so that the same picture can be asked for twice
  const take = (token) => {
    viewer.close();
    tell("picture-token", `${token} ${++asked}`);
    const box = document.querySelector("#prompt textarea");
    box.focus();
    box.scrollIntoView({ block: "center" });
  };

  viewer.addEventListener("click", (event) => {
    const button = event.target.closest("[data-move]");
    if (button) move(Number(button.dataset.move));
    else if (event.target.closest("[data-take]")) take(shown.href.split("/").pop());
    else if (event.target === viewer) viewer.close();
  });

  document.addEventListener("click", (event) => {
    const picture = event.target.closest("a.picture");
    if (picture && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      show(picture);
    }
    const use = event.target.closest("[data-use]");
    if (use) take(use.dataset.use);
  });
  document.addEventListener("keydown", (event) => {
    if (!viewer.open) return;
    if (event.key === "ArrowLeft") move(-1);
    if (event.key === "ArrowRight") move(1);
  });

  // A file dropped or pasted on the tab Generate, except where something else takes files
  const input = () =>
    document.getElementById("picture-file").parentElement.querySelector("input[type=file]");
  const pictureOf = (list) => [...(list ?? [])].find((file) => file.type.startsWith("image/"));
  const takes = (event) => {
    const button = document.getElementById("picture-file");
    return button?.offsetParent && !event.target.closest?.("#files");
  };
  const hand = (file) => {
    const files = new DataTransfer();
    files.items.add(file);
    input().files = files.files;
    input().dispatchEvent(new Event("change", { bubbles: true }));
  };
  const over = (is) => document.body.toggleAttribute("data-dropping", is);
  document.addEventListener("dragover", (event) => {
    if (!takes(event) || ![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    over(true);
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget || over(false));
  document.addEventListener("drop", (event) => {
    over(false);
    const file = takes(event) && pictureOf(event.dataTransfer.files);
    if (!file) return;
    event.preventDefault();
    hand(file);
  });
  document.addEventListener("paste", (event) => {
    const file = takes(event) && pictureOf(event.clipboardData.files);
    if (!file) return;
    event.preventDefault();
    hand(file);
  });

  const begin = () => document.body.append(viewer);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
