"""ModelNet10 and ModelNet40: OFF meshes voxelised to 32^3, or npz files of volumes, in 12 or 24 rotations.

Layout (https://modelnet.cs.princeton.edu): ``CLASS/train/*.off`` and ``CLASS/test/*.off``. As in Brock et
al. 2016 (1608.04236) every object appears in ``rotations`` equal steps about its vertical axis; the
rotations of one object are consecutive samples and :func:`smash_search.data.average_views` averages over
them.
The npz layout is theirs too: ``features`` [N, 1, 32, 32, 32] and ``targets`` [N].

A voxel is set where the surface passes through it; interiors stay empty. Values are 0 and 255.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from smash_base.errors import InvalidInputError
from smash_search.data import arrays, cache
from smash_search.data.dataset import Parts, Split
from smash_search.data.spec import Spec

SIZE = 32
MARGIN = 2  # empty voxels on each side, so that convolutions see the outline whole
MAX_OFF_BYTES = 2**28
MAX_ELEMENTS = 20_000_000  # vertices or faces of one mesh
MAX_SAMPLES = 2**21  # points sampled in one step, bounds the memory of one mesh


def read(spec: Spec) -> Parts:
    """Read ``modelnet10:PATH`` or ``modelnet40:PATH``.

    PATH is the folder of class folders, or a folder with one ``*train*.npz`` and one ``*test*.npz``.
    Options: ``rotations`` (1, 12 or 24; default 12), ``cache=FOLDER`` for the voxelised copy.
    """
    spec.options_known("rotations", "cache")
    rotations = int(spec.choice("rotations", ("1", "12", "24"), "12"))
    folder = spec.folder(hint="Give the folder that holds the class folders.")
    if not folder.is_dir():
        raise InvalidInputError(f"data path {folder}", expected="a folder", received="a file")
    count = 10 if spec.name == "modelnet10" else 40
    packed = {part: sorted(folder.glob(f"*{part}*.npz")) for part in ("train", "test")}
    if any(packed.values()):
        splits = [_packed(folder, part, files) for part, files in packed.items()]
        names = tuple(str(label) for label in range(count))
        return Parts(names, train=splits[0], test=splits[1], views=rotations)
    classes = tuple(sorted(item.name for item in folder.iterdir() if (item / "train").is_dir()))
    if len(classes) != count:
        raise InvalidInputError(
            f"{folder} is not {spec.name}",
            expected=f"{count} folders CLASS/train and CLASS/test",
            received=f"{len(classes)} of them",
        )
    place = Path(spec.options.get("cache", folder)).expanduser()
    train, test = (_meshes(folder, part, classes, rotations, place, spec.name) for part in ("train", "test"))
    return Parts(classes, train=train, test=test, views=rotations)


def _packed(folder: Path, part: str, files: list[Path]) -> Split:
    if len(files) != 1:
        raise InvalidInputError(
            f"{folder}",
            expected=f"one file *{part}*.npz",
            received=", ".join(p.name for p in files) or "none",
        )
    volumes = arrays.read_member(files[0], "features")
    if volumes.ndim != 5 or volumes.shape[1:] != (1, SIZE, SIZE, SIZE) or volumes.dtype.kind not in "bu":
        raise InvalidInputError(
            f"{files[0]}: features",
            expected=f"uint8 or bool [N, 1, {SIZE}, {SIZE}, {SIZE}]",
            received=f"{volumes.dtype} {volumes.shape}",
        )
    labels = arrays.as_labels(arrays.read_member(files[0], "targets"), f"{files[0]}: targets")
    filled = np.where(volumes[:, 0] != 0, np.uint8(255), np.uint8(0))
    return Split(filled[..., None], labels)


def _meshes(
    folder: Path, part: str, classes: tuple[str, ...], rotations: int, place: Path, name: str
) -> Split:
    sources: list[Path] = []
    labels: list[int] = []
    for label, class_name in enumerate(classes):
        found = sorted((folder / class_name / part).glob("*.off"))
        if not found:
            raise InvalidInputError(f"{folder / class_name / part} holds no mesh", expected="*.off files")
        sources += found
        labels += [label] * len(found)

    def fill(target: np.ndarray) -> None:
        for index, path in enumerate(sources):
            vertices, triangles = read_off(path)
            for turn in range(rotations):
                volume = voxelise(vertices, triangles, 2 * np.pi * turn / rotations)
                target[index * rotations + turn] = volume[..., None]

    shape = (len(sources) * rotations, SIZE, SIZE, SIZE, 1)
    images = cache.mapped(place, f"{name}-{part}-{rotations}", sources, shape, fill)[0]
    return Split(images, np.repeat(np.array(labels, dtype=np.int64), rotations))


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices float64 [V, 3] and triangles int64 [T, 3] of one OFF mesh; polygons become fans.

    ModelNet has files whose first line runs on into the counts (``OFF490 518 0``); they are accepted.

    Raises:
        InvalidInputError: not OFF, truncated, an index of no vertex, or no face.
    """
    if path.stat().st_size > MAX_OFF_BYTES:
        raise InvalidInputError(f"{path} is too large", expected=f"at most {MAX_OFF_BYTES} bytes")
    text = path.read_bytes()
    if not text.startswith(b"OFF"):
        raise InvalidInputError(f"{path} is not an OFF mesh", expected="OFF", received=text[:20])
    lines = [line for line in text[3:].splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    try:
        counts = [int(token) for token in lines[0].split()]
        vertex_count, face_count = counts[0], counts[1]
        if not (0 < vertex_count <= MAX_ELEMENTS and 0 < face_count <= MAX_ELEMENTS):
            raise ValueError(f"{vertex_count} vertices and {face_count} faces")
        if len(lines) < 1 + vertex_count + face_count:
            raise ValueError(f"{len(lines) - 1} lines for {vertex_count} vertices and {face_count} faces")
        rows = [line.split()[:3] for line in lines[1 : 1 + vertex_count]]
        vertices = np.array(rows, dtype=np.float64)
        triangles = _triangles(lines[1 + vertex_count : 1 + vertex_count + face_count])
    except (ValueError, IndexError, OverflowError) as error:
        raise InvalidInputError(
            f"{path} is truncated or damaged", expected="counts, vertices and faces", received=error
        ) from None
    if vertices.shape != (vertex_count, 3) or not np.isfinite(vertices).all():
        raise InvalidInputError(f"{path}: vertices", expected="three finite numbers each")
    if not len(triangles) or triangles.min() < 0 or triangles.max() >= vertex_count:
        raise InvalidInputError(
            f"{path}: faces", expected=f"vertex numbers 0 to {vertex_count - 1}", received="others"
        )
    return vertices, triangles


def _triangles(lines: list[bytes]) -> np.ndarray:
    result = []
    for line in lines:
        corners = [int(token) for token in line.split()]
        count = corners[0]
        if count < 1 or len(corners) < count + 1:
            raise ValueError(f"a face {line[:40]!r}")
        result += [(corners[1], corners[k], corners[k + 1]) for k in range(2, count)]
    return np.array(result, dtype=np.int64).reshape(-1, 3)


def voxelise(vertices: np.ndarray, triangles: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """The surface of a mesh, turned by ``angle`` about its vertical (third) axis, as uint8 [32, 32, 32].

    The scale is the same for every angle (the upright cylinder around the object fits), so rotations of one
    object differ by the rotation only. Axes of the result: height, depth, width. Every triangle is
    covered by points at most half a voxel apart.
    """
    centre = (vertices.min(axis=0) + vertices.max(axis=0)) / 2
    centred = vertices - centre
    radius = np.sqrt((centred[:, :2] ** 2).sum(axis=1)).max()
    extent = max(float(radius), float(np.abs(centred[:, 2]).max()), 1e-12)
    cosine, sine = np.cos(angle), np.sin(angle)
    turned = centred @ np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    points = turned * ((SIZE / 2 - MARGIN) / extent) + SIZE / 2
    corners = points[triangles]  # [T, 3 corners, 3 axes]
    longest = np.sqrt(((corners - np.roll(corners, 1, axis=1)) ** 2).sum(axis=2)).max(axis=1)
    steps = np.maximum(1, np.ceil(longest * 2)).astype(np.int64)
    volume = np.zeros((SIZE, SIZE, SIZE), dtype=np.uint8)
    for step in np.unique(steps):
        first, second = np.meshgrid(np.arange(step + 1), np.arange(step + 1), indexing="ij")
        inside = first + second <= step
        weights = np.stack([first[inside], second[inside], step - first[inside] - second[inside]], 1) / step
        chosen = corners[steps == step]
        size = max(1, MAX_SAMPLES // len(weights))
        for start in range(0, len(chosen), size):
            cells = np.floor(weights @ chosen[start : start + size]).astype(np.int64).reshape(-1, 3)
            x, y, z = np.clip(cells, 0, SIZE - 1).T
            volume[z, y, x] = 255
    return volume
