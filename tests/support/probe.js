// What is wrong with a page as it is laid out now: returned as JSON.
(() => {
  document.querySelectorAll("details").forEach((d) => (d.open = true));
  const name = (e) => `${e.tagName.toLowerCase()}.${e.getAttribute("class") || ""}`;
  const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const parse = (colour) => {
    const n = (colour.match(/[\d.]+/g) || []).map(Number);
    return n.length ? [...n.slice(0, 3), n.length > 3 ? n[3] : 1] : [0, 0, 0, 0];
  };
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor);
      if (c[3] === 1) return c;
    }
    return [255, 255, 255, 1];
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const faint = [], small = [], seen = new Set();
  let least = 99, smallest = 99;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    const e = node.parentElement;
    if (!node.data.trim() || seen.has(e)) continue;
    seen.add(e);
    if (["TITLE", "DESC", "SCRIPT", "STYLE", "title", "desc"].includes(e.tagName)) continue;
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e), inside = e instanceof SVGElement;
    const ink = parse(inside ? style.fill : style.color);
    const ratio = contrast(ink, behind(inside ? e.closest("svg").parentElement : e));
    least = Math.min(least, ratio);
    if (ratio < 4.5) faint.push(`${name(e)} ${ratio.toFixed(2)} ${node.data.trim().slice(0, 30)}`);
    const size = parseFloat(style.fontSize) * (inside ? e.getScreenCTM().a : 1);
    smallest = Math.min(smallest, size);
    if (size < 9.99) small.push(`${name(e)} ${size.toFixed(1)} ${node.data.trim().slice(0, 30)}`);
  }
  const images = [...document.images];
  const graphics = [...document.querySelectorAll(".full, .hollow, .whisker, .curve, .gap, .axis")];
  const pale = graphics
    .map((e) => {
      const style = getComputedStyle(e);
      const tone = style.stroke !== "none" ? style.stroke : style.fill;
      return [e, contrast(parse(tone), behind(e.closest("svg").parentElement))];
    })
    .filter(([, ratio]) => ratio < 3)
    .map(([e, ratio]) => `${name(e)} ${ratio.toFixed(2)}`);
  const broad = [...document.body.querySelectorAll("*")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width && box.right > document.documentElement.clientWidth + 1 &&
      !e.closest(".wide, .broad, pre");
  });
  const root = document.documentElement;
  return JSON.stringify({
    overflow: Math.max(0, root.scrollWidth - root.clientWidth),
    broad: broad.slice(0, 5).map(name),
    faint: [...new Set(faint)].slice(0, 8), least, pale: [...new Set(pale)],
    small: [...new Set(small)].slice(0, 8), smallest,
    missing: images.filter((i) => !i.complete || !i.naturalWidth).map((i) => i.alt),
    unnamed: [
      ...images.filter((i) => !i.alt).map(name),
      ...[...document.querySelectorAll("svg")]
        .filter((s) => !s.parentElement.closest("svg") && s.getAttribute("aria-hidden") !== "true")
        .filter((s) => !(s.getAttribute("role") === "img" && s.getAttribute("aria-label")))
        .map(name),
    ],
    scripts: document.scripts.length,
    taken: window.taken === true,
    texts: seen.size,
  });
})();
