"""Pages from without: their scripts to ask, and pictures of them.

The pictures are small: PNG (ISO 15948) with a palette of 256 colours.
"""

from __future__ import annotations

import base64
import struct
import zlib

COLOURS = 256
# In the browser, which can read what it has drawn: gives width, height, the palette, and an index for each point.
_REDUCE = """async ([picture, most]) => {
  const image = new Image();
  image.src = `data:image/png;base64,${picture}`;
  await image.decode();
  const canvas = new OffscreenCanvas(image.width, image.height);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0);
  const points = new Uint32Array(pen.getImageData(0, 0, image.width, image.height).data.buffer);
  const often = new Map();
  for (const point of points) often.set(point, (often.get(point) ?? 0) + 1);
  // Of colours that are nearly the same one comes first, so that a hue that is rare is not lost.
  const sorted = [...often.keys()].sort((one, other) => often.get(other) - often.get(one));
  const cells = new Map();
  for (const colour of sorted) if (!cells.has(colour & 0xf0f0f0)) cells.set(colour & 0xf0f0f0, colour);
  const palette = [...new Set([...cells.values(), ...sorted])].slice(0, most);
  const parts = (colour) => [colour & 255, (colour >> 8) & 255, (colour >> 16) & 255];
  const known = palette.map(parts);
  const nearest = new Map(palette.map((colour, place) => [colour, place]));
  for (const colour of often.keys()) {
    if (nearest.has(colour)) continue;
    const [red, green, blue] = parts(colour);
    let best = 0;
    let least = Infinity;
    known.forEach(([r, g, b], place) => {
      const far = (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2;
      if (far < least) [best, least] = [place, far];
    });
    nearest.set(colour, best);
  }
  const indexes = Uint8Array.from(points, (point) => nearest.get(point));
  let text = "";
  for (let at = 0; at < indexes.length; at += 32768) text += String.fromCharCode(...indexes.subarray(at, at + 32768));
  return [image.width, image.height, known.flat(), btoa(text)];
}"""


def script(name: str, ask: str) -> str:
    """Return JavaScript that asks a script of the page: `script("live", "lag()")`."""
    return f"import(document.querySelector('script[src]').src.replace('app', '{name}')).then((it) => it.{ask})"


def small(page, picture: bytes) -> bytes:
    """Return this picture as a small PNG. `page` is a blank page of the browser, to reckon in."""
    width, height, palette, text = page.evaluate(_REDUCE, [base64.b64encode(picture).decode(), COLOURS])
    indexes = base64.b64decode(text)
    lines = b"".join(b"\0" + indexes[row * width : (row + 1) * width] for row in range(height))
    parts = [
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", bytes(palette)),
        (b"IDAT", zlib.compress(lines, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
