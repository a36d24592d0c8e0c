// The page `paint_your_photo`: pictures in, pictures out. What is computed stands in network.js.
'use strict';

(() => {
  const here = document.currentScript.src.replace(/[^/]*$/, '');
  const app = document.getElementById('painter');
  const get = name => document.querySelector(`main [data-is="${name}"]`);
  const epochs = app.dataset.epochs.split(' ').map(Number);
  // `left`, `top`, `side`: the square of the photo that is painted, in its pixels.
  const state = {epoch: epochs[epochs.length - 1], photo: null, left: 0, top: 0, side: 0};
  const networks = new Map();                  // epoch -> {file, network, vectors}

  function say(text) { get('said').textContent = text; }

  // ---- loading: scripts, because a page opened from a folder may load nothing else

  function loadScript(name) {
    return new Promise((done, failed) => {
      const s = document.createElement('script');
      s.src = here + name;
      s.onload = done;
      s.onerror = () => failed(new Error(`${name} is missing beside this page.`));
      document.head.append(s);
    });
  }

  function loadPicture(url) {
    return new Promise((done, failed) => {
      const im = new Image();
      im.onload = () => done(im);
      im.onerror = () => failed(new Error('This file is no picture that your browser can open; ' +
        'JPEG, PNG and WebP are.'));
      im.src = url;
    });
  }

  async function networkOf(epoch) {
    if (!painter.files[epoch]) await loadScript(`epoch-${epoch}.js`);
    if (!networks.has(epoch)) {
      const file = painter.files[epoch], all = readHalves(file.vectors), n = file.channels;
      const vectors = painter.pictures.kinds.map((_, i) => [...all.subarray(i * n, (i + 1) * n)]);
      networks.set(epoch, {file, network: readNetwork(file), vectors});
    }
    return networks.get(epoch);
  }

  // ---- a photo

  // The browser shrinks photos whose shorter side is longer than this.
  const most = 512;

  function take(im, width, height) {
    const scale = Math.min(1, most / Math.min(width, height)), canvas = get('photo');
    canvas.width = Math.max(1, Math.round(width * scale));
    canvas.height = Math.max(1, Math.round(height * scale));
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    pen.imageSmoothingQuality = 'high';
    pen.fillStyle = 'white';                   // what is transparent lies over white
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(im, 0, 0, canvas.width, canvas.height);
    const {data} = pen.getImageData(0, 0, canvas.width, canvas.height);
    state.photo = {rgba: data, width: canvas.width, height: canvas.height};
    state.side = 0;
    resize(75);
    return update();
  }

  async function takeFile(file) {
    const url = URL.createObjectURL(file);
    try {
      const im = await loadPicture(url);
      await take(im, im.naturalWidth, im.naturalHeight);
    } catch (e) { say(e.message); }
    finally { URL.revokeObjectURL(url); }
  }

  // ---- drawing

  function show(canvas, x) {
    canvas.width = x.w;
    canvas.height = x.h;
    canvas.getContext('2d').putImageData(new ImageData(toBytes(x), x.w, x.h), 0, 0);
  }

  // One channel as grey: its lowest value black, its highest white.
  function showMap(canvas, x, channel) {
    const part = x.data.subarray(channel * x.h * x.w, (channel + 1) * x.h * x.w);
    const low = Math.min(...part), range = Math.max(...part) - low || 1;
    const grey = picture(3, x.h, x.w);
    for (let c = 0; c < 3; c++) grey.data.set(part.map(v => 2 * (v - low) / range - 1), c * part.length);
    show(canvas, grey);
  }

  // A filter around grey: brighter where it adds, darker where it takes away.
  function showFilter(canvas, filter) {
    const largest = Math.max(...filter.data.map(Math.abs)) || 1;
    show(canvas, {...filter, data: filter.data.map(v => v / largest)});
  }

  function drawScene(canvas, index) {
    const {size, columns, image} = painter.pictures;
    canvas.width = canvas.height = size;
    const x = index % columns * size, y = Math.floor(index / columns) * size;
    canvas.getContext('2d').drawImage(image, x, y, size, size, 0, 0, size, size);
    return canvas;
  }

  function sceneButton(index, words) {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(drawScene(document.createElement('canvas'), index), words);
    button.setAttribute('aria-label', `use this drawn scene: ${words}`);
    button.addEventListener('click', () => {
      const canvas = button.firstChild;
      take(canvas, canvas.width, canvas.height);
    });
    return button;
  }

  // The mean difference from the photo where it was hidden, in levels of 0 to 255.
  function missOf(x, photo, side) {
    let sum = 0, n = 0;
    for (let i = 0; i < x.data.length; i++) {
      const place = i % (x.h * x.w);
      if (inWindow(x, side, Math.floor(place / x.w), place % x.w)) continue;
      sum += Math.abs(x.data[i] - photo.data[i]);
      n++;
    }
    return (127.5 * sum / n).toFixed(0);
  }

  // What anybody could paint: everywhere the mean colour of what is seen.
  function meanColour(seen) {
    const out = picture(seen.c, seen.h, seen.w), n = seen.h * seen.w;
    for (let c = 0; c < seen.c; c++) {
      const sum = seen.data.subarray(c * n, (c + 1) * n).reduce((a, b) => a + b, 0);
      out.data.fill(sum / n, c * n, (c + 1) * n);
    }
    return out;
  }

  function placeFrame() {
    const {photo, left, top, side} = state, percent = (a, b) => `${100 * a / b}%`;
    Object.assign(get('frame').style, {
      left: percent(left, photo.width), top: percent(top, photo.height),
      width: percent(side, photo.width), height: percent(side, photo.height)});
  }

  // The square of the frame, and its centre enlarged, cut from the photo's own pixels.
  function cutFrame(file) {
    const {photo, left, top, side} = state, inner = side * file.window / file.size;
    const piece = (x, y, s) => fromBytes(cutSquare(photo, x, y, s, file.size), file.size);
    return {truth: piece(left, top, side),
      seen: piece(left + (side - inner) / 2, top + (side - inner) / 2, inner)};
  }

  function repaint({file, network}) {
    const {truth, seen} = cutFrame(file), painted = paint(network, seen);
    placeFrame();
    show(get('seen'), seen);
    show(get('painted'), painted);
    show(get('composed'), composed(painted, truth, file.window));
    show(get('truth'), truth);
    say(`Around the window the painting is off by ${missOf(painted, truth, file.window)} of 255 levels on ` +
      `average. The mean colour of the window alone would be off by ${missOf(meanColour(seen), truth, file.window)}.`);
    return truth;
  }

  function describeFilters({network}, truth) {
    const maps = firstStage(network, truth), box = get('filters');
    firstFilters(network).forEach((filter, i) => {
      if (!box.children[i]) {
        const pair = document.createElement('div');
        pair.append(document.createElement('canvas'), document.createElement('canvas'));
        pair.lastChild.setAttribute('role', 'img');
        pair.firstChild.setAttribute('role', 'img');
        pair.firstChild.setAttribute('aria-label', `filter ${i + 1}`);
        pair.lastChild.setAttribute('aria-label', `where filter ${i + 1} responds on your photo`);
        box.append(pair);
      }
      showFilter(box.children[i].firstChild, filter);
      showMap(box.children[i].lastChild, maps, i);
    });
  }

  function describeNeighbours({network, vectors}, truth) {
    const found = nearest(embed(network, truth), vectors, 6);
    const {kinds} = painter.pictures;
    get('neighbours').replaceChildren(...found.map(({index, score}) =>
      sceneButton(index, `${kinds[index]}, ${score.toFixed(2)}`)));
  }

  async function update() {
    try {
      const of = await networkOf(state.epoch);
      const truth = repaint(of);
      describeFilters(of, truth);
      describeNeighbours(of, truth);
      app.dataset.shown = state.epoch;
    } catch (e) { say(e.message); }
  }

  // ---- what the reader does

  const clamp = (v, most) => Math.min(most, Math.max(0, Math.round(v)));

  function place(left, top) {
    const {photo, side} = state;
    state.left = clamp(left, photo.width - side);
    state.top = clamp(top, photo.height - side);
  }

  // `percent` of the photo's shorter side, around the same centre.
  function resize(percent) {
    const {photo, left, top, side} = state, before = side || photo.width;
    const centre = side ? [left + before / 2, top + before / 2] : [photo.width / 2, photo.height / 2];
    state.side = Math.max(2, Math.round(Math.min(photo.width, photo.height) * percent / 100));
    place(centre[0] - state.side / 2, centre[1] - state.side / 2);
    get('size').value = percent;
  }

  // While something is dragged: once for each picture on the screen, and only what is at the top.
  let waiting = false;
  function soon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; repaint(networks.get(state.epoch)); });
  }

  function makeMovable(frame) {
    const steps = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    frame.addEventListener('keydown', e => {
      if (!steps[e.key]) return;
      e.preventDefault();
      const far = Math.max(1, state.side / 32), [x, y] = steps[e.key];
      place(state.left + far * x, state.top + far * y);
      update();
    });
    let start = null;
    frame.addEventListener('pointerdown', e => {
      e.preventDefault();
      frame.focus({preventScroll: true});
      frame.setPointerCapture(e.pointerId);
      start = {x: e.clientX, y: e.clientY, left: state.left, top: state.top};
    });
    frame.addEventListener('pointermove', e => {
      if (!start) return;
      const scale = state.photo.width / get('photo').clientWidth;
      place(start.left + (e.clientX - start.x) * scale, start.top + (e.clientY - start.y) * scale);
      soon();
    });
    for (const end of ['pointerup', 'pointercancel'])
      frame.addEventListener(end, () => { start = null; update(); });
  }

  function makeDroppable(place) {
    place.addEventListener('dragover', e => { e.preventDefault(); app.classList.add('over'); });
    place.addEventListener('dragleave', () => app.classList.remove('over'));
    place.addEventListener('drop', e => {
      e.preventDefault();
      app.classList.remove('over');
      const [file] = e.dataTransfer.files;
      if (file) takeFile(file);
      else say('That was no file. Drop a picture from a folder of your computer.');
    });
    document.addEventListener('paste', e => {
      const [file] = e.clipboardData.files;
      if (file) takeFile(file);
    });
  }

  // Without a camera that the page may use, a phone's own camera may still give a file.
  async function openCamera() {
    const video = get('video');
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
      await video.play();
      get('camera').hidden = false;
    } catch {
      say('No camera here that the page may use; choose a photo instead.');
      get('phone').click();
    }
  }

  function closeCamera(keep) {
    const video = get('video');
    const taken = keep ? take(video, video.videoWidth, video.videoHeight) : null;
    video.srcObject.getTracks().forEach(t => t.stop());
    get('camera').hidden = true;
    return taken;
  }

  function listen() {
    for (const name of ['file', 'phone'])
      get(name).addEventListener('change', e => { if (e.target.files[0]) takeFile(e.target.files[0]); });
    get('choose').addEventListener('click', () => get('file').click());
    get('open').addEventListener('click', openCamera);
    get('snap').addEventListener('click', () => closeCamera(true));
    get('cancel').addEventListener('click', () => closeCamera(false));
    for (const radio of app.querySelectorAll('[name="painter-epoch"]'))
      radio.addEventListener('change', () => { state.epoch = +radio.value; update(); });
    get('size').addEventListener('input', e => { resize(+e.target.value); soon(); });
    get('size').addEventListener('change', update);
    makeMovable(get('frame'));
    makeDroppable(app);
  }

  async function begin() {
    try {
      await loadScript('pictures.js');
      painter.pictures.image = await loadPicture(painter.pictures.sheet);
      const examples = app.dataset.examples.split(' ').map(Number);
      get('examples').append(...examples.map(i => sceneButton(i, painter.pictures.kinds[i])));
      listen();
      get('examples').firstChild.click();
    } catch (e) { say(e.message); }
  }
  begin();
})();
