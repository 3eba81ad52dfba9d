"use strict";

// Decode the block that formats/explorer.py writes: gzip in base64, of a JSON header and columns (formats/columns.py).

async function decodeBlock(text) {
  const binary = atob(text);
  const compressed = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) {
    compressed[i] = binary.charCodeAt(i);
  }
  const stream = new Blob([compressed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  const headerLength = new DataView(content).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 4, headerLength)));
  return { header, bytes: new Uint8Array(content, 4 + headerLength) };
}

// Return a column as a typed array: the low bytes of all differences come first, then the higher ones.
function decodeColumn(bytes, [offset, width, length]) {
  const values = new { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[width](length);
  let value = 0;
  for (let i = 0; i < length; i++) {
    for (let byte = 0, factor = 1; byte < width; byte++, factor *= 256) {
      value += bytes[offset + byte * length + i] * factor;
    }
    values[i] = value; // modulo 2^bits, as the differences are
    value = values[i];
  }
  return values;
}

// Return numbers whose upper 16 bits are in a column (bfloat16).
function decodeFloats(column) {
  const bits = Uint32Array.from(column, (value) => value << 16);
  return new Float32Array(bits.buffer);
}
