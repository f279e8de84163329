// What is typed stays in the browser: for this tab, and for the next one that opens.
window.sdloraDrafts = (() => {
  "use strict";

  const WAITS_MS = [100, 1_500, 6_000, 20_000]; // a pause in typing, and what the server answers to it
  const key = (place) => `sdlora-draft-${place}`;
  const same = (a, b) => JSON.stringify(a ?? "") === JSON.stringify(b ?? "");
  let isReady = false; // before that the fields hold what the page began with, not what was typed
  const drafts = {}; // place -> the fields that somebody has set
  const held = {}; // place -> what every field holds
  const places = new Set();
  let waiting = [];

  // A browser may forbid storage, or have none left: then a draft lives as long as its page.
  const read = (store, place) => {
    try {
      return store.getItem(key(place));
    } catch {
      return null;
    }
  };
  const write = (store, place, text) => {
    try {
      store.setItem(key(place), text);
    } catch {
      // nothing to do: see above
    }
  };

  const save = (place) => {
    const text = JSON.stringify(drafts[place]);
    for (const store of [sessionStorage, localStorage]) write(store, place, text);
  };

  const parsed = (text) => {
    try {
      return JSON.parse(text) ?? {};
    } catch {
      return {};
    }
  };

  // Something was done: what all fields hold now is asked for, once it has come to rest.
  const collect = () => {
    for (const place of places) document.getElementById(`${place}-collect`)?.click();
  };
  const done = (event) => {
    if (event.target.id?.endsWith("-collect")) return;
    waiting.forEach(clearTimeout);
    waiting = WAITS_MS.map((wait) => setTimeout(collect, wait));
  };

  // An empty number stands for its usual value, that of a preset too, and shows it.
  const hint = (ids, defaults) => {
    for (const [name, id] of Object.entries(ids)) {
      const box = defaults[name] && document.querySelector(`#${id}.number input`);
      if (box && box.placeholder !== defaults[name]) box.placeholder = defaults[name];
    }
  };

  // What the fields hold: `ids` are theirs by name, `values` what each holds, `usual` the JSON
  // of what they hold while nobody sets them.
  const typed = (place, ids, usual, values) => {
    const before = held[place];
    const names = Object.keys(ids);
    held[place] = Object.fromEntries(names.map((name, at) => [name, values[at]]));
    const changed = before ? names.filter((name) => !same(before[name], held[place][name])) : [];
    const detail = changed.map((name) => ids[name]);
    document.dispatchEvent(new CustomEvent("sdlora-changed", { detail }));
    if (!isReady) return;
    const defaults = parsed(usual);
    hint(ids, defaults);
    drafts[place] = Object.fromEntries(
      Object.entries(held[place]).filter(([name, value]) => !same(value, defaults[name])),
    );
    save(place);
  };

  // The drafts to begin with: this tab's own, else the last of any tab.
  const stored = (asked) =>
    asked.map((place) => {
      places.add(place);
      const text = read(sessionStorage, place) ?? read(localStorage, place) ?? "";
      if (text) write(sessionStorage, place, text);
      drafts[place] = parsed(text || "{}");
      return text;
    });

  const stash = (place) => {
    write(sessionStorage, `${place}-before-reset`, JSON.stringify(drafts[place] ?? {}));
    return [];
  };
  const stashed = (place) => [read(sessionStorage, `${place}-before-reset`) ?? ""];

  for (const kind of ["input", "change", "click"]) document.addEventListener(kind, done, true);
  addEventListener("pagehide", collect);
  return { typed, stored, stash, stashed, collect, ready: () => (isReady = true) };
})();
