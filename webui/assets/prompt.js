// The prompt: LoRA tags put in and taken out, weights by key, names completed while they are typed.
(() => {
  "use strict";

  const boxes = "#prompt textarea, #negative-prompt textarea";
  const promptBox = () => document.querySelector("#prompt textarea");

  // As if it were typed: Gradio hears of it, and Ctrl+Z takes it back.
  const replace = (box, start, end, text) => {
    box.focus();
    box.setSelectionRange(start, end);
    if (box.value.slice(start, end) === text) return;
    if (document.execCommand(text ? "insertText" : "delete", false, text)) return;
    box.setRangeText(text, start, end, "end");
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // LoRA cards ------------------------------------------------------------------------------------

  // What a tag means is read by the server alone: it tells with every reading of the prompt which
  // files its tags use, and what the prompt becomes when a card is clicked.
  const markCards = () => {
    const chosen = JSON.parse(document.querySelector("#counter [data-chosen]")?.dataset.chosen ?? "[]");
    for (const card of document.querySelectorAll(".chip[data-tag]")) {
      const pressed = String(chosen.includes(card.dataset.tag));
      if (card.getAttribute("aria-pressed") !== pressed) card.setAttribute("aria-pressed", pressed);
    }
  };

  const clicks = []; // cards whose clicks are not answered yet, the first of them asked about
  let asked = { number: 0, prompt: "" };
  const send = () => {
    if (!clicks.length) return;
    asked = { number: asked.number + 1, prompt: promptBox().value };
    const box = document.querySelector("#lora-clicked :is(textarea, input)");
    box.value = JSON.stringify({ ...asked, name: clicks[0].dataset.tag });
    box.dispatchEvent(new Event("input", { bubbles: true }));
    const { number } = asked;
    setTimeout(() => number === asked.number && clicks.splice(0), 10_000); // no answer is to come
  };
  const toggle = (card) => {
    clicks.push(card);
    if (clicks.length === 1) send();
  };
  const answered = () => {
    const answer = document.querySelector("#lora-edited [data-number]")?.dataset;
    if (!clicks.length || Number(answer?.number) !== asked.number) return;
    const box = promptBox();
    if (box.value === asked.prompt) {
      const card = clicks.shift();
      replace(box, 0, box.value.length, answer.text);
      card.focus();
    } // else it was typed on meanwhile: ask again
    send();
  };

  // Model cards, and buttons in fragments -----------------------------------------------------------------------------------

  let sent = 0; // so that a button pressed twice is heard twice
  // Puts the value of a button into the hidden field that the server listens to.
  const tellServer = (id, value) => {
    const box = document.querySelector(`#${id} :is(textarea, input)`);
    sent += 1;
    box.value = `${sent} ${value}`;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const chooseModel = (card) => {
    const cards = card.closest("[id$=-model-cards]").id;
    tellServer(cards.replace("-cards", "-clicked"), card.dataset.model);
    for (const other of card.parentElement.children) {
      other.setAttribute("aria-pressed", String(other === card));
    }
  };

  // Ctrl + Up and Down ----------------------------------------------------------------------------

  const NUMBER = /[+-]?(?:\d+\.?\d*|\.\d+)/;
  const TAGS = /<(?:lora|lyco):[^<>]+>|(?<![\w<:\/\\.@#-])(?:lora|lyco):[^\s,;<>()[\]{}|]+/gi;
  const rounded = (value) => String(Math.round(value * 1000) / 1000);

  // The tag with its weights changed: the one the cursor stands in, else all of them.
  const stronger = (tag, by, at) => {
    const name = tag.match(/^<?\w+:[^:<>]*/)[0];
    const close = tag.endsWith(">") ? ">" : "";
    const inside = tag.slice(name.length, tag.length - close.length);
    if (!NUMBER.test(inside)) return `${name}:${rounded(1 + by)}${inside}${close}`;
    const weights = [...inside.matchAll(/([:=,]\s*)([+-]?(?:\d+\.?\d*|\.\d+))(?=\s*(?:[@:,]|$))/g)]
      .map((match) => ({ from: match.index + match[1].length, text: match[2] }));
    const under = weights.filter(({ from, text }) => {
      const place = at - name.length;
      return place >= from && place <= from + text.length;
    });
    let result = inside;
    for (const { from, text } of (under.length ? under : weights).reverse()) {
      result = result.slice(0, from) + rounded(Number(text) + by) + result.slice(from + text.length);
    }
    return name + result + close;
  };

  // The innermost (...) around a selection, or the one that is selected; null when there is none.
  const bracketAround = (text, start, end) => {
    const open = [];
    for (let i = 0; i < text.length; i++) {
      if (text[i] === "\\") i++;
      else if (text[i] === "(") open.push(i);
      else if (text[i] === ")" && open.length) {
        const from = open.pop();
        if (from <= start && i + 1 >= end && (from < start || i + 1 === end)) return [from, i + 1];
      }
    }
    return null;
  };

  const wordAround = (text, at) => {
    const ends = /[\s.,;:!?()[\]{}<>|"/\\]/;
    let [start, end] = [at, at];
    while (start > 0 && !ends.test(text[start - 1])) start--;
    while (end < text.length && !ends.test(text[end])) end++;
    return [start, end];
  };

  const weigh = (box, direction) => {
    const text = box.value;
    let { selectionStart: start, selectionEnd: end } = box;
    const tag = [...text.matchAll(TAGS)].find((m) => m.index <= start && m.index + m[0].length >= end);
    if (tag) {
      const at = start - tag.index;
      const changed = stronger(tag[0], 0.05 * direction, at);
      replace(box, tag.index, tag.index + tag[0].length, changed);
      const cursor = tag.index + Math.min(at, changed.length);
      return box.setSelectionRange(cursor, cursor);
    }
    const around = bracketAround(text, start, end);
    let [inner, weight] = ["", 1];
    if (around) {
      [start, end] = around;
      const [, words, , said] = text.slice(start + 1, end - 1).match(/^([^]*?)(:\s*([+-]?[\d.]+)\s*)?$/);
      [inner, weight] = [words, said === undefined ? 1.1 : Number(said)];
    } else {
      if (start === end) [start, end] = wordAround(text, start);
      while (start < end && /\s/.test(text[end - 1])) end--;
      inner = text.slice(start, end);
    }
    if (!inner || Number.isNaN(weight)) return null;
    const now = rounded(weight + 0.1 * direction);
    replace(box, start, end, now === "1" ? inner : `(${inner}:${now})`);
    const from = start + (now === "1" ? 0 : 1);
    return box.setSelectionRange(from, from + inner.length);
  };

  // Completion of LoRA names ----------------------------------------------------------------------

  const TYPED = /(?:(<)|(?<![\w<:\/\\.@#-]))(?:lora|lyco):([^<>:\n]*)$/i;
  let completing = null; // {box, start, end, bare, typed}
  const list = () => document.querySelector("#lora-offers [role=listbox]");
  const options = () => [...(list()?.querySelectorAll("[role=option]") ?? [])];

  const close = () => {
    if (!completing) return;
    completing.box.removeAttribute("aria-activedescendant");
    completing.box.setAttribute("aria-expanded", "false");
    completing = null;
    document.getElementById("lora-offers")?.removeAttribute("data-open");
  };

  const look = (box) => {
    const before = box.value.slice(0, box.selectionStart);
    const match = box.selectionStart === box.selectionEnd && before.match(TYPED);
    if (!match || (!match[1] && /[\s,;()[\]{}|]/.test(match[2]))) return close();
    const end = box.selectionStart;
    completing = { box, start: end - match[0].length, end, bare: !match[1], typed: match[2] };
    const ask = document.querySelector("#lora-typed textarea, #lora-typed input");
    if (ask.value === match[2]) return offer();
    ask.value = match[2];
    return ask.dispatchEvent(new Event("input", { bubbles: true }));
  };

  // The server has answered, to what is typed now or to something older.
  const offer = () => {
    const place = document.getElementById("lora-offers");
    if (completing && list()?.dataset.typed !== completing.typed) return null; // more is to come
    if (!completing || !options().length) {
      return place?.removeAttribute("data-open");
    }
    const { box } = completing;
    place.setAttribute("data-open", ""); // a class would not last: Gradio sets all of them anew
    const [frame, base] = [box.getBoundingClientRect(), place.getBoundingClientRect()];
    list().style.top = `${frame.bottom - base.top + 4}px`;
    list().style.left = `${frame.left - base.left}px`;
    list().style.width = `${frame.width}px`;
    box.setAttribute("aria-controls", list().id);
    box.setAttribute("aria-autocomplete", "list");
    box.setAttribute("aria-expanded", "true");
    return choose(0);
  };

  const isOpen = () => completing && document.querySelector("#lora-offers[data-open]");

  const choose = (index) => {
    options().forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    const chosen = options()[index];
    completing.box.setAttribute("aria-activedescendant", chosen.id);
    chosen.scrollIntoView({ block: "nearest" });
  };

  const accept = (option) => {
    const { box, start, end, bare } = completing;
    const { name, weight } = option.dataset;
    const rest = box.value.slice(end).match(/^:[^<>]*>|^>/); // of a tag that is being renamed
    const plain = bare && !/[\s,;()[\]{}|"]/.test(name);
    const tag = plain ? `lora:${name}:${weight}` : `<lora:${name}:${weight}>`;
    close();
    if (rest && !plain) replace(box, start, end + rest[0].length - 1, tag.slice(0, -1));
    else replace(box, start, end, tag);
    const cursor = start + tag.length;
    box.setSelectionRange(cursor, cursor);
    close();
  };

  // Events ----------------------------------------------------------------------------------------

  const onKey = (event) => {
    const box = event.target.closest?.(boxes);
    if (!box) return;
    if (isOpen() && completing.box === box) {
      const now = options().findIndex((option) => option.getAttribute("aria-selected") === "true");
      const moves = { ArrowDown: 1, ArrowUp: -1 };
      if (event.key in moves && !event.ctrlKey) {
        choose((now + moves[event.key] + options().length) % options().length);
      } else if ((event.key === "Enter" && !event.ctrlKey) || event.key === "Tab") {
        accept(options()[now]);
      } else if (event.key === "Escape") close();
      else return;
    } else if ((event.ctrlKey || event.metaKey) && ["ArrowUp", "ArrowDown"].includes(event.key)) {
      weigh(box, event.key === "ArrowUp" ? 1 : -1);
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  };

  const begin = () => {
    document.addEventListener("keydown", onKey, true);
    document.addEventListener("click", (event) => {
      const card = event.target.closest(".chip[data-tag]");
      if (card) toggle(card);
      const model = event.target.closest(".chip[data-model]");
      if (model) chooseModel(model);
      const button = event.target.closest("[data-send]");
      if (button) tellServer(button.dataset.send, button.dataset.value);
    });
    document.addEventListener(
      "error",
      ({ target }) => target.matches?.(".chip img") && target.remove(), // its letter is under it
      true,
    );
    document.addEventListener("mousedown", (event) => {
      const option = event.target.closest("#lora-offers [role=option]");
      if (!option) return event.target.closest(boxes) ? null : close();
      event.preventDefault(); // the prompt keeps the cursor
      return accept(option);
    });
    document.addEventListener("input", (event) => {
      if (event.target.matches(boxes)) look(event.target);
    });
    document.addEventListener("focusout", (event) => {
      if (event.target === completing?.box) close();
    });
    let seen; // what the names on offer were asked with
    new MutationObserver(() => {
      markCards();
      answered();
      const typed = list()?.dataset.typed;
      if (typed === seen) return;
      seen = typed;
      offer();
    }).observe(document.body, { childList: true, subtree: true, attributeFilter: ["data-typed", "data-number", "data-chosen"] });
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
  else begin();
})();
