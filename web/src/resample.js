// Pillow's resizing, to the last bit, for isa_tf.load_predictor resizes with it: a picture of
// another size than the model's has the same ids in the page as in Python.

const BITS = 22; // Pillow's PRECISION_BITS: weights are integers of 1 / 2^22

// Of each place along one axis: where what it sees begins, how many there are, and their weights.
function bilinearTaps(from, to) {
  const scale = from / to;
  const filter = Math.max(scale, 1); // shrinking smooths
  const width = Math.ceil(filter) * 2 + 1;
  const first = new Int32Array(to);
  const count = new Int32Array(to);
  const weights = new Int32Array(to * width);
  const floats = new Float64Array(width);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(Math.trunc(center - filter + 0.5), 0);
    const n = Math.min(Math.trunc(center + filter + 0.5), from) - start;
    let sum = 0;
    for (let j = 0; j < n; j++) {
      const x = Math.abs((j + start - center + 0.5) * (1 / filter));
      floats[j] = x < 1 ? 1 - x : 0;
      sum += floats[j];
    }
    for (let j = 0; j < n; j++) {
      const weight = sum === 0 ? floats[j] : floats[j] / sum;
      weights[i * width + j] = Math.trunc(0.5 + weight * (1 << BITS));
    }
    first[i] = start;
    count[i] = n;
  }
  return { width, first, count, weights };
}

// RGB along the rows.
function resizeRows(rgb, height, width, toWidth) {
  const out = new Uint8ClampedArray(height * toWidth * 3);
  const { width: most, first, count, weights } = bilinearTaps(width, toWidth);
  for (let y = 0; y < height; y++) {
    const row = y * width * 3;
    for (let x = 0; x < toWidth; x++) {
      let r = 1 << (BITS - 1);
      let g = r;
      let b = r;
      let at = row + first[x] * 3;
      for (let k = x * most, end = k + count[x]; k < end; k++, at += 3) {
        const weight = weights[k];
        r += rgb[at] * weight;
        g += rgb[at + 1] * weight;
        b += rgb[at + 2] * weight;
      }
      const to = (y * toWidth + x) * 3;
      out[to] = r >> BITS;
      out[to + 1] = g >> BITS;
      out[to + 2] = b >> BITS;
    }
  }
  return out;
}

// RGB along the columns.
function resizeColumns(rgb, height, width, toHeight) {
  const stride = width * 3;
  const out = new Uint8ClampedArray(toHeight * stride);
  const { width: most, first, count, weights } = bilinearTaps(height, toHeight);
  const sums = new Int32Array(stride);
  for (let y = 0; y < toHeight; y++) {
    sums.fill(1 << (BITS - 1));
    for (let j = 0; j < count[y]; j++) {
      const weight = weights[y * most + j];
      const row = (first[y] + j) * stride;
      for (let x = 0; x < stride; x++) sums[x] += rgb[row + x] * weight;
    }
    for (let x = 0; x < stride; x++) out[y * stride + x] = sums[x] >> BITS;
  }
  return out;
}

// RGB of (height, width) -> RGB of (toHeight, toWidth), rounded to bytes between both steps. Which
// comes first is what Pillow 13 was seen to do; older ones always begin with the rows, which moves
// some values by one grey level.
export function resizeRgb(rgb, height, width, toHeight, toWidth) {
  const columnsFirst = toHeight < height && height - toHeight > 2 * (width - toWidth);
  if (columnsFirst) {
    rgb = resizeColumns(rgb, height, width, toHeight);
    height = toHeight;
  }
  if (width !== toWidth) rgb = resizeRows(rgb, height, width, toWidth);
  if (height !== toHeight) rgb = resizeColumns(rgb, height, toWidth, toHeight);
  return rgb;
}

// Where each place reads: added up as Pillow does, for rounding decides at the half.
function nearestTable(from, to) {
  const table = new Int32Array(to);
  const step = from / to;
  for (let i = 0, at = step * 0.5; i < to; i++, at += step) {
    table[i] = at < from ? Math.trunc(at) : -1;
  }
  return table;
}

// A map of one number a pixel, to the nearest.
export function resizeNearest(map, height, width, toHeight, toWidth) {
  if (height === toHeight && width === toWidth) return map;
  const out = new map.constructor(toHeight * toWidth);
  const columns = nearestTable(width, toWidth);
  const rows = nearestTable(height, toHeight);
  for (let y = 0; y < toHeight; y++) {
    if (rows[y] < 0) continue;
    const row = rows[y] * width;
    for (let x = 0; x < toWidth; x++) {
      if (columns[x] >= 0) out[y * toWidth + x] = map[row + columns[x]];
    }
  }
  return out;
}

// RGBA -> RGB; the photo's canvas is opaque.
export function dropAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return rgb;
}
