// Web vitals of the page that loads this, told once when it is left: no cookies, no identifiers, nothing about the person.
// <script src="…/static/vitals.js" defer data-service="shop" data-sample="0.1" data-route="/items/{id}"></script>
"use strict";
(() => {
  const script = document.currentScript;
  const { service, sample = "1", route, url } = script.dataset;
  if (!window.PerformanceObserver || !navigator.sendBeacon || Math.random() >= Number(sample)) return;

  const observers = [];
  const observe = (type, seen, more) => {
    if (!(PerformanceObserver.supportedEntryTypes || []).includes(type)) return;
    const take = (entries) => entries.forEach(seen);
    const observer = new PerformanceObserver((list) => take(list.getEntries()));
    observer.observe({ type, buffered: true, ...more });
    observers.push(() => take(observer.takeRecords()));
  };

  // What was painted in a page that nobody looked at says nothing.
  let hiddenAt = document.visibilityState === "hidden" ? 0 : Infinity;
  const shown = () => performance.getEntriesByType("navigation")[0]?.activationStart || 0;

  let lcp;
  observe("largest-contentful-paint", (entry) => {
    if (entry.startTime < hiddenAt) lcp = Math.max(entry.startTime - shown(), 0);
  });

  // The worst session window: shifts less than 1 s apart, 5 s in all.
  let cls, session = 0, first = 0, last = 0;
  if ((PerformanceObserver.supportedEntryTypes || []).includes("layout-shift") && hiddenAt) cls = 0;
  observe("layout-shift", (entry) => {
    if (entry.hadRecentInput) return;
    const goes_on = session && entry.startTime - last < 1000 && entry.startTime - first < 5000;
    if (!goes_on) { session = 0; first = entry.startTime; }
    session += entry.value;
    last = entry.startTime;
    cls = Math.max(cls || 0, session);
  });

  // About the 98th percentile of the interactions: of the ten slowest, one further down for every fifty.
  const slowest = new Map();
  let lowest = Infinity, highest = 0;
  const interaction = ({ interactionId: id, duration }) => {
    if (!id) return;
    lowest = Math.min(lowest, id);
    highest = Math.max(highest, id);
    slowest.set(id, Math.max(duration, slowest.get(id) || 0));
    if (slowest.size > 10) {
      slowest.delete([...slowest].reduce((least, one) => (one[1] < least[1] ? one : least))[0]);
    }
  };
  observe("event", interaction, { durationThreshold: 16 });
  observe("first-input", interaction);
  const inp = () => {
    // Browsers that count nothing give numbers 7 apart.
    const count = performance.interactionCount || (highest ? (highest - lowest) / 7 + 1 : 0);
    const worst = [...slowest.values()].sort((a, b) => b - a);
    return worst[Math.min(worst.length - 1, Math.floor(count / 50))];
  };

  let told = false;
  const tell = () => {
    hiddenAt = Math.min(hiddenAt, performance.now());
    if (told) return;
    told = true;
    observers.forEach((take) => take());
    const measured = { lcp_ms: lcp, inp_ms: inp(), cls };
    if (Object.values(measured).every((value) => value === undefined)) return;
    const named = route || document.querySelector("meta[name=route]")?.content;
    const where = named ? { endpoint: named } : { path: location.pathname };
    // As text it needs no question to the other origin first.
    const to = url || new URL("/api/v1/vitals", script.src).href;
    navigator.sendBeacon(to, JSON.stringify({ service, ...where, ...measured }));
  };
  document.addEventListener("visibilitychange", () => document.visibilityState === "hidden" && tell());
  addEventListener("pagehide", tell);
})();
