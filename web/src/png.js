// A PNG of ids as they are: grey, 8 bits a pixel, or 16 where an id needs them.

const CRC = new Int32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

function chunk(type, data) {
  const bytes = new Uint8Array(data.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = type.charCodeAt(i);
  bytes.set(data, 8);
  view.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
  return bytes;
}

// ids: one number a pixel; deep: whether they take 16 bits. Returns a promise of a Blob.
export async function encodeIds(ids, width, height, deep) {
  const size = deep ? 2 : 1;
  const stride = width * size + 1; // a byte in front says that a row is not filtered
  const raw = new Uint8Array(stride * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0, to = y * stride + 1; x < width; x++) {
      const id = ids[y * width + x];
      if (deep) raw[to++] = id >> 8;
      raw[to++] = id & 255;
    }
  }
  const zlib = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  const packed = new Uint8Array(await new Response(zlib).arrayBuffer());
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = size * 8;
  return new Blob(
    [
      Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10),
      chunk("IHDR", header),
      chunk("IDAT", packed),
      chunk("IEND", new Uint8Array(0)),
    ],
    { type: "image/png" },
  );
}
