// A trained generator in the browser: the few kinds of layer it has, as plain loops.
// A picture is {c, h, w, data}: channel after channel, row after row, as PyTorch keeps one.
// Batch norm is not here: `.ci/painter.py` multiplies it into the convolution in front of it.
'use strict';

const painter = {files: {}};     // epoch -> what its weights file says

function picture(c, h, w) {
  return {c, h, w, data: new Float32Array(c * h * w)};
}

// ---- weights: half precision, as text

// The number that 16 bits stand for: a sign, 5 bits of exponent, 10 bits of fraction.
function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

function readHalves(base64) {
  const text = atob(base64), numbers = new Float32Array(text.length / 2);
  for (let i = 0; i < numbers.length; i++)
    numbers[i] = halfToNumber(text.charCodeAt(2 * i) | text.charCodeAt(2 * i + 1) << 8);
  return numbers;
}

// A weights file lists its layers; their numbers lie one behind the other: weights, then biases.
function readNetwork(file) {
  const numbers = readHalves(file.numbers);
  let at = 0;
  const take = n => numbers.subarray(at, at += n);
  const layers = file.layers.map(l =>
    ({...l, weight: take(l.ni * l.nf * l.side * l.side), bias: take(l.nf)}));
  if (at !== numbers.length) throw new Error(`${numbers.length} numbers for layers of ${at}`);
  const of = part => layers.filter(l => l.stage.startsWith(part));
  return {encoder: of('conv'), decoder: of('up')};
}

// ---- layers

// out[f] = bias[f] + the sum over channels c and places (ky, kx) of weight[f][c] * x[c].
function convolve(x, {ni, nf, side, stride, pad, weight, bias}) {
  const h = Math.floor((x.h + 2 * pad - side) / stride) + 1;
  const w = Math.floor((x.w + 2 * pad - side) / stride) + 1;
  const out = picture(nf, h, w);
  for (let f = 0; f < nf; f++) {
    out.data.fill(bias[f], f * h * w, (f + 1) * h * w);
    for (let c = 0; c < ni; c++)
      for (let ky = 0; ky < side; ky++)
        for (let kx = 0; kx < side; kx++) {
          const k = weight[((f * ni + c) * side + ky) * side + kx];
          for (let y = 0; y < h; y++) {
            const row = y * stride + ky - pad;
            if (row < 0 || row >= x.h) continue;         // outside the picture all is 0
            const from = (c * x.h + row) * x.w, to = (f * h + y) * w;
            for (let i = 0; i < w; i++) {
              const column = i * stride + kx - pad;
              if (column >= 0 && column < x.w) out.data[to + i] += k * x.data[from + column];
            }
          }
        }
  }
  return out;
}

// The same way back: each place of x paints a patch of `side` pixels, `stride` pixels further each.
function convolveTransposed(x, {ni, nf, side, stride, pad, weight, bias}) {
  const h = (x.h - 1) * stride - 2 * pad + side, w = (x.w - 1) * stride - 2 * pad + side;
  const out = picture(nf, h, w);
  for (let f = 0; f < nf; f++) {
    out.data.fill(bias[f], f * h * w, (f + 1) * h * w);
    for (let c = 0; c < ni; c++)
      for (let ky = 0; ky < side; ky++)
        for (let kx = 0; kx < side; kx++) {
          const k = weight[((c * nf + f) * side + ky) * side + kx];
          for (let y = 0; y < x.h; y++) {
            const row = y * stride + ky - pad;
            if (row < 0 || row >= h) continue;
            const from = (c * x.h + y) * x.w, to = (f * h + row) * w;
            for (let i = 0; i < x.w; i++) {
              const column = i * stride + kx - pad;
              if (column >= 0 && column < w) out.data[to + column] += k * x.data[from + i];
            }
          }
        }
  }
  return out;
}

const activations = {
  none: v => v,
  relu: v => Math.max(v, 0),
  leaky: v => v < 0 ? 0.2 * v : v,
  tanh: Math.tanh,
};

function runLayers(layers, x) {
  for (const layer of layers) {
    x = layer.transposed ? convolveTransposed(x, layer) : convolve(x, layer);
    x.data = x.data.map(activations[layer.then]);
  }
  return x;
}

// ---- what the page asks of a network

// Whether row y and column x lie in the centre window of `side` pixels.
function inWindow(x, side, row, column) {
  const from = (x.h - side) / 2, to = from + side;
  return row >= from && row < to && column >= from && column < to;
}

// The real centre in what was painted around it (§2.1, eq. 1).
function composed(painted, photo, side) {
  const out = {...painted, data: painted.data.slice()};
  for (let i = 0; i < out.data.length; i++) {
    const place = i % (photo.h * photo.w);
    if (inWindow(photo, side, Math.floor(place / photo.w), place % photo.w)) out.data[i] = photo.data[i];
  }
  return out;
}

function paint(network, seen) {
  return runLayers(network.decoder, runLayers(network.encoder, seen));
}

// The maps of the first stage, and for each the pattern of 8 x 8 pixels that it looks for:
// the stage is linear up to its activation, so its answer to a single bright pixel shows the filter.
function firstStage(network, photo) {
  return runLayers(network.encoder.filter(l => l.stage === 'conv1'), photo);
}

function firstFilters(network) {
  const [first, second] = network.encoder, side = first.side + (second.side - 1) * first.stride;
  return Array.from({length: second.nf}, (_, f) => {
    const out = picture(first.ni, side, side);
    for (let m = 0; m < second.ni; m++)
      for (let y = 0; y < second.side; y++)
        for (let x = 0; x < second.side; x++) {
          const k = second.weight[((f * second.ni + m) * second.side + y) * second.side + x];
          for (let c = 0; c < first.ni; c++)
            for (let v = 0; v < first.side; v++)
              for (let u = 0; u < first.side; u++)
                out.data[(c * side + y * first.stride + v) * side + x * first.stride + u] +=
                  k * first.weight[((m * first.ni + c) * first.side + v) * first.side + u];
        }
    return out;
  });
}

// One vector for the whole photo: each channel of the last stage, averaged over its places.
function embed(network, photo) {
  const last = runLayers(network.encoder, photo), places = last.h * last.w;
  return Array.from({length: last.c}, (_, c) =>
    last.data.subarray(c * places, (c + 1) * places).reduce((a, b) => a + b, 0) / places);
}

// The most similar of `vectors`: cosines after each channel's mean over them has been taken away.
function nearest(vector, vectors, count) {
  const mean = vector.map((_, k) => vectors.reduce((s, v) => s + v[k], 0) / vectors.length);
  const centred = v => v.map((a, k) => a - mean[k]);
  const norm = v => Math.hypot(...v) || 1;
  const a = centred(vector);
  const scores = vectors.map(v => {
    const b = centred(v);
    return b.reduce((s, x, k) => s + x * a[k], 0) / (norm(a) * norm(b));
  });
  return scores.map((score, index) => ({index, score})).sort((p, q) => q.score - p.score)
    .slice(0, count);
}

// ---- from bytes to what a network sees, and back

// The weight of a pixel at distance t: Keys' cubic with a = -0.5, as Pillow's BICUBIC.
function cubic(t) {
  t = Math.abs(t);
  if (t < 1) return (1.5 * t - 2.5) * t * t + 1;
  return t < 2 ? ((-0.5 * t + 2.5) * t - 4) * t + 2 : 0;
}

// A piece of a line, `length` pixels from `start` on, becomes `size` pixels: for each of them the
// first pixel that counts, and the weights from there on. The line has n pixels in all.
function resamplingOf(n, start, length, size) {
  const scale = length / size, wide = Math.max(scale, 1);     // wider when shrinking: antialiasing
  return Array.from({length: size}, (_, i) => {
    const centre = start + (i + 0.5) * scale;
    const from = Math.max(0, Math.floor(centre - 2 * wide + 0.5));
    const to = Math.min(n, Math.floor(centre + 2 * wide + 0.5));
    const weights = Float64Array.from({length: to - from}, (_, k) => cubic((from + k + 0.5 - centre) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    return {from, weights: weights.map(w => w / sum)};
  });
}

const toByte = v => Math.min(255, Math.max(0, Math.round(v)));

// A square of a photo (RGBA bytes) as size x size x 3 bytes: resampled along the rows, then the columns.
function cutSquare({rgba, width, height}, left, top, side, size) {
  const across = resamplingOf(width, left, side, size), down = resamplingOf(height, top, side, size);
  const first = down[0].from, last = down[size - 1].from + down[size - 1].weights.length;
  const rows = new Uint8Array(height * size * 3), out = new Uint8Array(size * size * 3);
  for (let y = first; y < last; y++)
    for (let x = 0; x < size; x++)
      for (let c = 0; c < 3; c++) {
        const {from, weights} = across[x];
        let sum = 0;
        for (let k = 0; k < weights.length; k++) sum += weights[k] * rgba[(y * width + from + k) * 4 + c];
        rows[(y * size + x) * 3 + c] = toByte(sum);
      }
  for (let y = 0; y < size; y++)
    for (let i = 0; i < size * 3; i++) {
      const {from, weights} = down[y];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * rows[(from + k) * size * 3 + i];
      out[y * size * 3 + i] = toByte(sum);
    }
  return out;
}

function fromBytes(rgb, size) {
  const x = picture(3, size, size);
  for (let i = 0; i < size * size; i++)
    for (let c = 0; c < 3; c++) x.data[c * size * size + i] = rgb[i * 3 + c] / 127.5 - 1;
  return x;
}

function toBytes(x) {
  const n = x.h * x.w, rgba = new Uint8ClampedArray(n * 4).fill(255);
  for (let i = 0; i < n; i++)
    for (let c = 0; c < 3; c++) rgba[i * 4 + c] = toByte((x.data[c * n + i] + 1) * 127.5);
  return rgba;
}

if (typeof module !== 'undefined')
  module.exports = {picture, halfToNumber, readNetwork, runLayers, paint, inWindow, composed,
    firstStage, firstFilters, embed, nearest, cutSquare, fromBytes, toBytes};
