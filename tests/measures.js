// What tests/test_site.py measures in a page. Each function returns what is wrong, as short sentences.
({
  // Texts whose contrast with their ground is below 4.5. What looks alike is measured once.
  contrast(root = document.body) {
    const numbers = s => { const m = s.match(/[\d.]+/g).map(Number); return m.length > 3 ? m : [...m, 1]; };
    const over = (a, b) => {
      const k = a[3] + b[3] * (1 - a[3]);
      return k ? [0, 1, 2].map(i => (a[i] * a[3] + b[i] * b[3] * (1 - a[3])) / k).concat(k) : [0, 0, 0, 0];
    };
    const light = c => {
      const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
      return .2126 * r + .7152 * g + .0722 * b;
    };
    const kinds = new Map(), known = new WeakMap(), grounds = new Map(), opaque = new Map(), done = new Set(), faults = [];
    const kind = e => {                        // a number for each way an element can look: its own marks and its parent's
      if (!e) return 0;
      if (!known.has(e)) {
        const odd = e.tagName === 'TR' ? [...e.parentElement.children].indexOf(e) % 2 : '';
        const key = [kind(e.parentElement), e.tagName, e.getAttribute('class'), e.getAttribute('style'), e.id === 'TOC', odd,
          e.getAttribute('fill'), e.disabled, /^https:/.test(e.getAttribute('href') || '')].join('|');
        if (!kinds.has(key)) kinds.set(key, kinds.size + 1);
        known.set(e, kinds.get(key));
      }
      return known.get(e);
    };
    const ground = e => {
      if (!e) return [255, 255, 255, 1];
      const k = kind(e);
      if (!grounds.has(k)) {
        const c = numbers(getComputedStyle(e).backgroundColor);
        grounds.set(k, c[3] === 1 ? c : over(c, ground(e.parentElement)));
      }
      return grounds.get(k);
    };
    const opacity = e => {
      if (!e) return 1;
      const k = kind(e);
      if (!opaque.has(k)) opaque.set(k, getComputedStyle(e).opacity * opacity(e.parentElement));
      return opaque.get(k);
    };
    const walk = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    let texts = 0;
    while (walk.nextNode()) {
      const e = walk.currentNode.parentElement, said = walk.currentNode.data.trim();
      if (!said || done.has(kind(e)) || e.closest('script, style, option, noscript, annotation')) continue;
      texts++;
      const s = getComputedStyle(e), c = numbers(e instanceof SVGElement && s.fill !== 'none' ? s.fill : s.color);
      c[3] *= opacity(e);
      const pair = [light(over(c, ground(e)).slice(0, 3)), light(ground(e).slice(0, 3))].sort((a, b) => b - a);
      const ratio = (pair[0] + .05) / (pair[1] + .05);
      const hidden = ratio < 4.5 && !e.checkVisibility({visibilityProperty: true, opacityProperty: true});
      if (hidden) continue;
      done.add(kind(e));
      if (ratio < 4.5)
        faults.push(`${ratio.toFixed(2)}: ${e.tagName.toLowerCase()}.${e.getAttribute('class') || ''} in ` +
          `${e.parentElement.tagName.toLowerCase()}.${e.parentElement.className}: ${said.slice(0, 30)}: ${s.color} on ${ground(e).map(Math.round)}`);
    }
    return {texts, faults};
  },

  // Blocks that go on where nobody can see or reach it: cut off, or scrolling without a sign.
  cut() {
    const blocks = document.querySelectorAll('main pre, main .cell-output-display, main .sd-table, main table, main .math, main p, ' +
      'main section, main figure, main details, main .cell, main .api, main, .quarto-container');
    const faults = [];
    for (const e of blocks) {
      if (!e.clientWidth || e.scrollWidth <= e.clientWidth + 2) continue;
      const flow = getComputedStyle(e).overflowX, what = `${e.tagName.toLowerCase()}.${e.className.slice(0, 40)} (${e.scrollWidth} px in ${e.clientWidth})`;
      if (flow === 'hidden' || flow === 'clip') faults.push(`cut: ${what}: ${e.textContent.trim().slice(0, 30)}`);
      if ((flow === 'auto' || flow === 'scroll') && !e.classList.contains('goes-on')) faults.push(`scrolls without a sign: ${what}`);
    }
    const wide = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth > wide) faults.push(`the page is ${document.documentElement.scrollWidth} px wide`);
    return faults;
  },

  // Solutions that leave something outside; folds that are wider than the page.
  folds() {
    const faults = [];
    for (const fold of document.querySelectorAll('main details')) {
      const title = fold.querySelector('summary').textContent.trim(), box = fold.getBoundingClientRect();
      if (/solution/i.test(title) && fold.nextElementSibling) faults.push(`${title}: something stands outside`);
      for (const e of fold.children)
        if (e.getBoundingClientRect().right > box.right + 4 || e.getBoundingClientRect().bottom > box.bottom + 1) faults.push(`${title}: ${e.className} sticks out`);
    }
    return faults;
  },

  // Figures with letters too small to read on a phone: an inch of a figure is an inch, 96 px.
  figures() {
    const faults = [];
    for (const f of document.querySelectorAll('main .figure-button img')) {
      const want = parseFloat(f.style.getPropertyValue('--true-size'));
      if (!(f.getBoundingClientRect().width >= want - 1)) faults.push(`${f.alt.slice(0, 30)}: ${f.getBoundingClientRect().width} px, ${want} wanted`);
    }
    const loose = [...document.querySelectorAll('main .cell-output-display img')].filter(f => !f.closest('.figure-button, .rnb, td, a'));
    return [...faults, ...loose.map(f => `${f.alt.slice(0, 30)} does not open large`)];
  },

  // Wide tables whose first column leaves the screen, and numbers with their intervals on three lines.
  tables() {
    const faults = [];
    for (const t of document.querySelectorAll('main table')) {
      const box = t.closest('.cell-output-display, .sd-table'), cell = [...t.querySelectorAll('tbody tr:first-child > th')].at(-1) || t.querySelector('tbody tr > *');
      if (!t.closest('.api') && box && cell && box.scrollWidth > box.clientWidth + 2) {
        box.scrollLeft = box.scrollWidth;
        if (cell.getBoundingClientRect().left < box.getBoundingClientRect().left - 1) faults.push(`the first column leaves: ${cell.textContent.trim().slice(0, 30)}`);
        if (cell.getBoundingClientRect().width > .6 * box.clientWidth) faults.push(`the first column covers the table: ${cell.textContent.trim().slice(0, 30)}`);
        box.scrollLeft = 0;
      }
      for (const d of t.querySelectorAll('td')) {
        if (!/\d\S*\s*(±|to|[\[(])\s*[-+−]?\d/.test(d.textContent) || d.textContent.length > 40) continue;
        const range = document.createRange();
        range.selectNodeContents(d);
        if (new Set([...range.getClientRects()].map(r => Math.round(r.top / 8))).size > 2) faults.push(`on three lines: ${d.textContent}`);
      }
    }
    return faults;
  },
})
