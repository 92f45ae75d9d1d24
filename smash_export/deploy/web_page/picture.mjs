// From a picture file to uint8 [height, width, channels], as smash_base/preprocess.py does it: transparency on
// black, grey by ITU-R 601-2, and Pillow's antialiased resampling, one axis after the other with rounding to
// bytes between (Pillow computes in fixed point; here and there a byte differs by one).
import { open_picture } from "./orientation.mjs";

const triangle = (x) => Math.max(0, 1 - Math.abs(x));
const cubic = (x) => {
  const a = -0.5, t = Math.abs(x);
  if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1;
  return t < 2 ? ((t - 5) * t + 8) * t * a - 4 * a : 0;
};
const box = (x) => (x > -0.5 && x <= 0.5 ? 1 : 0);
const FILTERS = { bilinear: [triangle, 1], bicubic: [cubic, 2], box: [box, 0.5] };

export async function decode(file, preprocessing) {
  const picture = await open_picture(file, preprocessing.exif); // not there: not heeded, as in Python
  const { width, height } = picture;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "black";
  context.fillRect(0, 0, width, height);
  picture.paint(context, width, height);
  const channels = preprocessing.channels;
  const planes = without_alpha(context.getImageData(0, 0, width, height).data, width * height, channels);
  return fitted({ bytes: planes, width, height, channels }, preprocessing);
}

function without_alpha(rgba, count, channels) {
  const bytes = new Uint8Array(count * channels);
  for (let pixel = 0; pixel < count; pixel++) {
    const [red, green, blue] = [rgba[4 * pixel], rgba[4 * pixel + 1], rgba[4 * pixel + 2]];
    if (channels === 1) bytes[pixel] = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16;
    else bytes.set([red, green, blue], 3 * pixel);
  }
  return bytes;
}

function fitted(picture, { width, height, short_side, resize }) {
  if (!short_side) return resized(picture, width, height, resize).bytes;
  const shorter = Math.min(picture.width, picture.height);
  const sides = [picture.width, picture.height].map((side) => Math.floor((short_side * side) / shorter));
  const whole = resized(picture, sides[0], sides[1], resize);
  return cropped(whole, half_to_even((sides[0] - width) / 2), half_to_even((sides[1] - height) / 2), width, height);
}

function half_to_even(value) {
  const low = Math.floor(value), rest = value - low;
  if (rest !== 0.5) return Math.round(value);
  return low % 2 === 0 ? low : low + 1;
}

function cropped(picture, left, top, width, height) {
  const { bytes, channels } = picture;
  const part = new Uint8Array(width * height * channels); // what the picture lacks is black
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [from_x, from_y] = [x + left, y + top];
      if (from_x < 0 || from_y < 0 || from_x >= picture.width || from_y >= picture.height) continue;
      const from = (from_y * picture.width + from_x) * channels;
      part.set(bytes.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return part;
}

function resized(picture, width, height, filter) {
  if (picture.width === width && picture.height === height) return picture;
  if (filter === "nearest") return nearest(picture, width, height);
  return along_y(along_x(picture, width, filter), height, filter);
}

function nearest(picture, width, height) {
  const { bytes, channels } = picture;
  const found = new Uint8Array(width * height * channels);
  for (let y = 0; y < height; y++) {
    const from_y = Math.floor(((y + 0.5) * picture.height) / height);
    for (let x = 0; x < width; x++) {
      const from = (from_y * picture.width + Math.floor(((x + 0.5) * picture.width) / width)) * channels;
      found.set(bytes.subarray(from, from + channels), (y * width + x) * channels);
    }
  }
  return { bytes: found, width, height, channels };
}

function weights_of(from, to, filter) {
  const [kernel, reach] = FILTERS[filter];
  const ratio = from / to, scale = Math.max(1, ratio), support = reach * scale;
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * ratio;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const values = [];
    for (let at = first; at < last; at++) values.push(kernel((at - centre + 0.5) / scale));
    const sum = values.reduce((total, value) => total + value, 0);
    return { first, values: values.map((value) => value / sum) };
  });
}

function along_x(picture, width, filter) {
  if (picture.width === width) return picture;
  const { bytes, height, channels } = picture;
  const found = new Uint8ClampedArray(height * width * channels);
  const weights = weights_of(picture.width, width, filter);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      for (let channel = 0; channel < channels; channel++) {
        let sum = 0;
        weights[x].values.forEach((value, at) => {
          sum += value * bytes[(y * picture.width + weights[x].first + at) * channels + channel];
        });
        found[(y * width + x) * channels + channel] = Math.floor(sum + 0.5);
      }
    }
  }
  return { bytes: new Uint8Array(found.buffer), width, height, channels };
}

function along_y(picture, height, filter) {
  if (picture.height === height) return picture;
  const { bytes, width, channels } = picture;
  const row = width * channels, found = new Uint8ClampedArray(height * row);
  const weights = weights_of(picture.height, height, filter);
  for (let y = 0; y < height; y++) {
    for (let at = 0; at < row; at++) {
      let sum = 0;
      weights[y].values.forEach((value, index) => {
        sum += value * bytes[(weights[y].first + index) * row + at];
      });
      found[y * row + at] = Math.floor(sum + 0.5);
    }
  }
  return { bytes: new Uint8Array(found.buffer), width, height, channels };
}
