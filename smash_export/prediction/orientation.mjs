// Pictures as smash_base/images.py sees them: as they lie in their files, or turned upright as their EXIF or XMP
// says. Browsers turn JPEG and PNG whatever imageOrientation says, and some turn WebP, others not: so the
// orientation is read and taken out of the bytes here, and the turn is made here.

// Orientation -> matrix of a canvas that draws a stored picture of w x h upright.
const MATRICES = {
  1: () => [1, 0, 0, 1, 0, 0],
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

// The picture of a Blob: width and height as it is to be seen, and paint(context, wide, high), to be called once.
export async function open_picture(file, exif) {
  const { orientation, plain } = without_orientation(new Uint8Array(await file.arrayBuffer()));
  const bitmap = await createImageBitmap(plain, { premultiplyAlpha: "none", colorSpaceConversion: "none" });
  const turn = exif ? orientation : 1;
  const [width, height] = turn < 5 ? [bitmap.width, bitmap.height] : [bitmap.height, bitmap.width];
  const paint = (context, wide, high) => {
    context.scale(wide / width, high / height);
    context.transform(...MATRICES[turn](bitmap.width, bitmap.height));
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
  };
  return { width, height, paint };
}

function without_orientation(bytes) {
  const kept = [];
  let exif = 0, xmp = 0, begin = 0;
  for (const { kind, start, data, end } of parts_of(bytes)) {
    if (kind === "XMP") xmp ||= orientation_of_xmp(bytes.subarray(data, end));
    if (kind !== "EXIF") continue;
    exif ||= orientation_of_exif(bytes.subarray(data, end));
    if (ascii(bytes, 0, 4) === "RIFF") {
      bytes.fill(0x58, start, start + 4); // a RIFF counts its bytes: the part stays, under a name that nobody reads
      continue;
    }
    kept.push(bytes.subarray(begin, start));
    begin = end;
  }
  kept.push(bytes.subarray(begin));
  const found = exif || xmp;
  return { orientation: found in MATRICES ? found : 1, plain: new Blob(kept) };
}

// The parts that may hold an orientation: kind, where a part and its content begin, and where it ends.
function parts_of(bytes) {
  const view = new DataView(bytes.buffer);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return parts_of_jpeg(bytes, view);
  if (ascii(bytes, 1, 3) === "PNG") return parts_of_png(bytes, view);
  return ascii(bytes, 0, 4) === "RIFF" ? parts_of_webp(bytes, view) : [];
}

function* parts_of_jpeg(bytes, view) {
  for (let start = 2; start + 4 <= bytes.length && bytes[start] === 0xff;) {
    const marker = bytes[start + 1], data = start + 4;
    if (marker === 0xda) return; // what follows is the picture
    const end = marker === 0xff ? start + 1 : start + 2 + view.getUint16(start + 2);
    if (marker === 0xe1 && ascii(bytes, data, 6) === "Exif\0\0") yield { kind: "EXIF", start, data, end };
    if (marker === 0xe1 && ascii(bytes, data, 7) === "http://") yield { kind: "XMP", start, data, end };
    start = end;
  }
}

function* parts_of_png(bytes, view) {
  for (let start = 8; start + 12 <= bytes.length;) {
    const name = ascii(bytes, start + 4, 4), data = start + 8, end = data + view.getUint32(start) + 4;
    if (name === "eXIf") yield { kind: "EXIF", start, data, end };
    if (name === "iTXt" && ascii(bytes, data, 17) === "XML:com.adobe.xmp") yield { kind: "XMP", start, data, end };
    start = end;
  }
}

function* parts_of_webp(bytes, view) {
  for (let start = 12; start + 8 <= bytes.length;) {
    const size = view.getUint32(start + 4, true), data = start + 8;
    const name = ascii(bytes, start, 4).trim();
    if (name === "EXIF" || name === "XMP") yield { kind: name, start, data, end: data + size };
    start = data + size + (size % 2);
  }
}

// The tag 0x0112 of the first directory; 0 where there is none or it cannot be read.
function orientation_of_exif(content) {
  const tiff = ascii(content, 0, 6) === "Exif\0\0" ? content.subarray(6) : content;
  const little = tiff[0] === 0x49; // "II"
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  try {
    const directory = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(directory, little); entry++) {
      const at = directory + 2 + 12 * entry;
      if (view.getUint16(at, little) !== 0x0112) continue;
      return view.getUint16(at + 2, little) === 3 ? view.getUint16(at + 8, little) : view.getUint32(at + 8, little);
    }
  } catch { /* it points behind its end */ }
  return 0;
}

function orientation_of_xmp(content) {
  const found = new TextDecoder("latin1").decode(content).match(/tiff:Orientation(?:="|>)([0-9])/);
  return found ? Number(found[1]) : 0;
}

function ascii(bytes, from, count) {
  return String.fromCharCode(...bytes.subarray(from, from + count));
}
