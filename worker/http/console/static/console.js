// Keeps the live parts of a page up to date. Without this script a page works, and can be reloaded.
"use strict";

const live = document.querySelector("[data-events]");
if (live) {
  const state = document.getElementById("live-state");
  const say = (name, text) => {
    if (state.textContent !== text) {
      state.className = name;
      state.textContent = text;
    }
  };
  const events = new EventSource(live.dataset.events);
  events.addEventListener("live", (event) => {
    const fresh = new DOMParser().parseFromString(event.data, "text/html");
    for (const part of fresh.querySelectorAll("[data-part]")) {
      const shown = document.getElementById(part.id);
      // A part in which somebody is at work with the keyboard stays as it is.
      if (shown && !shown.contains(document.activeElement)) {
        shown.replaceChildren(...part.childNodes);
      }
    }
    say("is-live", "Live");
  });
  events.addEventListener("error", () => say("is-late", "Connection lost: trying again"));
}
