"""Each reader on files of the real format, written here byte by byte; and on damaged ones."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import re
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smash_base.errors import InvalidInputError, SmashError, UsageError
from smash_search.data import Parts, Split, average_views, dataset_names, describe, load_dataset, maps
from smash_search.data.dataset import assemble
from smash_search.data.duplicates import duplicates_of
from smash_search.data.modelnet import read_off, voxelise

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def labels(count: int, classes: int, first: int = 0) -> np.ndarray:
    return np.arange(count) % classes + first


# IDX ------------------------------------------------------------------------------------------


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", axis) for axis in values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder: Path, packed: bool = False) -> np.ndarray:
    images = pixels(30, 5, 4)
    for part, count in (("train", 30), ("t10k", 10)):
        for kind, values in (("images-idx3", images[:count]), ("labels-idx1", labels(count, 10))):
            data = idx_bytes(values)
            name = f"{part}-{kind}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(data) if packed else data)
    return images


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "idx", "fashion-mnist"])
def test_idx(tmp_path, packed, name):
    images = write_idx(tmp_path, packed)
    data = load_dataset(f"{name}:{tmp_path}")
    assert len(data.classes) == 10
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 10)
    assert np.array_equal(data.test.images[..., 0], images[:10])
    assert np.array_equal(data.test.labels, np.arange(10))


def write_emnist(folder: Path, *sets: str) -> np.ndarray:
    """As torchvision leaves them: the sets of the published archive side by side, letters numbered from 1."""
    folder.mkdir(parents=True)
    images = pixels(260, 5, 4)
    for name in sets:
        numbers = labels(260, 26, 1) if name == "letters" else labels(260, 10)
        for part in ("train", "test"):
            for kind, values in (("images-idx3", images), ("labels-idx1", numbers)):
                (folder / f"emnist-{name}-{part}-{kind}-ubyte").write_bytes(idx_bytes(values))
    return images


def test_emnist_is_upright_and_its_letters_have_names(tmp_path):
    images = write_emnist(tmp_path / "EMNIST/raw", "letters")
    data = load_dataset(f"idx:{tmp_path}")
    assert data.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert np.array_equal(data.test.images[..., 0], images.transpose(0, 2, 1))
    assert np.array_equal(data.test.labels, np.arange(260) % 26)
    assert "lie on their side" in data.notes[0]
    lying = load_dataset(f"idx:{tmp_path}?transpose=no")
    assert np.array_equal(lying.test.images[..., 0], images)
    assert lying.notes == ()


def test_one_set_of_several_is_chosen(tmp_path):
    write_emnist(tmp_path / "raw", "letters", "digits", "balanced")
    with pytest.raises(InvalidInputError, match=r"balanced, digits, letters.*set="):
        load_dataset(f"idx:{tmp_path / 'raw'}")
    assert load_dataset(f"idx:{tmp_path / 'raw'}?set=digits").classes == tuple("0123456789")
    assert load_dataset(f"idx:{tmp_path / 'raw'}?set=balanced").classes == tuple("0123456789")
    with pytest.raises(InvalidInputError, match="no set 'byclass'"):
        load_dataset(f"idx:{tmp_path / 'raw'}?set=byclass")


def test_labels_of_idx_files_need_not_begin_with_zero_but_must_be_trained(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(labels(30, 10, 1)))
    with pytest.raises(InvalidInputError, match="labels that training has not"):
        load_dataset(f"idx:{tmp_path}")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels(10, 10, 1)))
    data = load_dataset(f"idx:{tmp_path}")
    assert data.classes == tuple(map(str, range(1, 11)))
    assert np.array_equal(data.test.labels, np.arange(10))


def damage_idx(path: Path, change: str) -> None:
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[:-3],
            "longer": data + b"x",
            "empty": b"",
            "text": b"hello world, this is no IDX file",
            "type": data[:2] + b"\x0d" + data[3:],
            "axes": data[:3] + b"\x02" + data[4:],
            "huge": data[:4] + b"\xff" * 12 + data[16:],
            "header": data[:9],
        }[change]
    )


@pytest.mark.parametrize("change", ["truncated", "longer", "empty", "text", "type", "axes", "huge", "header"])
def test_damaged_idx(tmp_path, change):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    damage_idx(path, change)
    with pytest.raises(InvalidInputError, match=r"train-images-idx3-ubyte.*expected"):
        load_dataset(f"mnist:{tmp_path}")


def test_truncated_gzip_and_mislabelled_idx(tmp_path):
    write_idx(tmp_path, packed=True)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with pytest.raises(InvalidInputError, match="truncated"):
        load_dataset(f"mnist:{tmp_path}")
    path.write_bytes(gzip.compress(idx_bytes(np.full(30, 12))))
    with pytest.raises(InvalidInputError, match=r"label of image 0; expected 0 to 9; received 12"):
        load_dataset(f"mnist:{tmp_path}")
    path.write_bytes(gzip.compress(idx_bytes(labels(29, 10))))
    with pytest.raises(InvalidInputError, match="expected 30"):
        load_dataset(f"mnist:{tmp_path}")
    path.write_bytes(gzip.compress(idx_bytes(labels(30, 9))))
    with pytest.raises(InvalidInputError, match=r"no training image.*'9'"):
        load_dataset(f"mnist:{tmp_path}")
    path.unlink()
    with pytest.raises(InvalidInputError, match="one file"):
        load_dataset(f"mnist:{tmp_path}")


# CIFAR ----------------------------------------------------------------------------------------


def write_cifar(folder: Path, name: str, kind: str, count: int = 40) -> np.ndarray:
    hundred = name == "cifar100"
    stems = ["train", "test"] if hundred else [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    rows = pixels(count, 3072)
    classes = 100 if hundred else 10
    for stem in stems:
        fine = labels(count, classes)
        if kind == "binary":
            head = np.stack([fine // 5, fine], 1) if hundred else fine[:, None]
            (folder / f"{stem}.bin").write_bytes(np.hstack([head.astype(np.uint8), rows]).tobytes())
        else:
            key = b"fine_labels" if hundred else b"labels"
            content = {b"batch_label": b"x", key: fine.tolist(), b"data": rows}
            if hundred:
                content[b"coarse_labels"] = (fine // 5).tolist()
            (folder / stem).write_bytes(pickle.dumps(content, protocol=2))
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar10(tmp_path, kind, packed):
    inner = tmp_path / "cifar-10"
    inner.mkdir()
    images = write_cifar(inner, "cifar10", kind)
    path = tmp_path
    if packed:
        path = tmp_path / "cifar.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            archive.add(inner, "cifar-10")
    data = load_dataset(f"cifar10:{path}")
    assert data.classes[:2] == ("airplane", "automobile")
    assert len(data.train) + len(data.validation) == 200
    assert np.array_equal(data.test.images, images)


@pytest.mark.parametrize("kind", ["binary", "python"])
@pytest.mark.parametrize(("which", "classes"), [("fine", 100), ("coarse", 20)])
def test_cifar100(tmp_path, kind, which, classes):
    images = write_cifar(tmp_path, "cifar100", kind, count=200)
    data = load_dataset(f"cifar100:{tmp_path}?labels={which}")
    assert len(data.classes) == classes
    assert np.array_equal(data.test.images, images)
    assert data.test.labels.max() == classes - 1


def test_both_cifar_sets_may_lie_in_one_folder(tmp_path):
    names = "".join(f"class {number}\n" for number in range(10))
    for name, place in (("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-binary")):
        (tmp_path / place).mkdir()
        write_cifar(tmp_path / place, name, "binary", count=200)
    (tmp_path / "cifar-10-batches-bin/batches.meta.txt").write_text(names)
    assert len(load_dataset(f"cifar10:{tmp_path}").classes) == 10
    assert len(load_dataset(f"cifar100:{tmp_path}").classes) == 100


def test_damaged_cifar(tmp_path):
    write_cifar(tmp_path, "cifar10", "binary")
    path = tmp_path / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=r"data_batch_2.bin.*multiple of 3073"):
        load_dataset(f"cifar10:{tmp_path}")
    path.unlink()
    with pytest.raises(InvalidInputError, match="is not cifar10"):
        load_dataset(f"cifar10:{tmp_path}")
    (tmp_path / "broken.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(InvalidInputError, match="archive"):
        load_dataset(f"cifar10:{tmp_path / 'broken.tar.gz'}")


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1]


@pytest.mark.parametrize(
    "content",
    [
        {b"data": Evil(exec, ("raise SystemExit",))},
        {b"data": Evil(bytearray, (10**12,))},
        {b"data": Evil(np.frombuffer, (b"x",))},
        {b"data": np.array([{}], dtype=object)},
        {b"data": pixels(10, 3071), b"labels": [0] * 10},
        {b"data": pixels(10, 3072), b"labels": ["a"] * 10},
        {b"data": pixels(10, 3072), b"labels": [0] * 9},
        {b"data": pixels(10, 3072)},
        ["a list"],
    ],
)
def test_malicious_and_wrong_pickles(tmp_path, content):
    write_cifar(tmp_path, "cifar10", "python")
    (tmp_path / "data_batch_3").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InvalidInputError, match=r"data_batch_3.*expected.*received"):
        load_dataset(f"cifar10:{tmp_path}")


def test_every_cut_and_many_flips_of_a_pickle_are_clean_errors(tmp_path):
    from smash_search.data import unpickle

    data = pickle.dumps({b"data": pixels(2, 6), b"labels": [1, 2], b"x": "y"}, protocol=2)
    assert unpickle.load(io.BytesIO(data), len(data), "it")["data"].shape == (2, 6)
    for end in range(len(data)):
        with pytest.raises(InvalidInputError):
            unpickle.load(io.BytesIO(data[:end]), end, "it")
    for _ in range(3000):
        changed = bytearray(data)
        changed[RANDOM.integers(len(data))] = RANDOM.integers(256)
        with contextlib.suppress(InvalidInputError):
            unpickle.load(io.BytesIO(bytes(changed)), len(data), "it")


# STL-10 ---------------------------------------------------------------------------------------


def write_stl10(folder: Path, count: int = 40) -> np.ndarray:
    planes = pixels(count, 3, 96, 96)  # [N, C, column, row]
    for part in ("train", "test"):
        (folder / f"{part}_X.bin").write_bytes(planes.tobytes())
        (folder / f"{part}_y.bin").write_bytes(labels(count, 10, first=1).astype(np.uint8).tobytes())
    lines = [" ".join(map(str, range(fold, fold + 20))) for fold in range(10)]
    (folder / "fold_indices.txt").write_text("\n".join(lines))
    return planes


def test_stl10_and_its_folds(tmp_path):
    planes = write_stl10(tmp_path)
    data = load_dataset(f"stl10:{tmp_path}")
    assert data.classes[2] == "car"
    assert data.test.images[3, 10, 20, 1] == planes[3, 1, 20, 10]  # row 10, column 20
    fold = load_dataset(f"stl10:{tmp_path}?fold=9")
    assert len(fold.train) + len(fold.validation) == 20
    (tmp_path / "fold_indices.txt").write_text("0 1 99\n" * 10)
    with pytest.raises(InvalidInputError, match="fold_indices"):
        load_dataset(f"stl10:{tmp_path}?fold=0")
    (tmp_path / "train_y.bin").write_bytes(bytes(40))
    with pytest.raises(InvalidInputError, match="1 to 10"):
        load_dataset(f"stl10:{tmp_path}")
    (tmp_path / "train_X.bin").write_bytes(b"x" * 100)
    with pytest.raises(InvalidInputError, match="27648"):
        load_dataset(f"stl10:{tmp_path}")


# ImageNet32 -----------------------------------------------------------------------------------


def write_imagenet32(folder: Path, packed: bool) -> np.ndarray:
    rows = pixels(60, 3072)
    for stem, chosen in (("train_data_batch_1", slice(0, 40)), ("train_data_batch_2", slice(40, 60)),
                         ("val_data", slice(0, 10))):  # fmt: skip
        content = {"data": rows[chosen], "labels": labels(60, 5, first=1)[chosen].tolist()}
        if packed:
            np.savez(folder / f"{stem}.npz", **content)
        else:
            (folder / stem).write_bytes(pickle.dumps(content, protocol=2))
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_imagenet32_is_converted_once_and_mapped(tmp_path, packed):
    images = write_imagenet32(tmp_path, packed)
    data = load_dataset(f"imagenet32:{tmp_path}?classes=5")
    assert isinstance(data.test.images, np.memmap)
    assert np.array_equal(data.test.images, images[:10])
    (copy,) = (tmp_path / ".smash-export-cache").glob("imagenet32-train-*/images.npy")
    assert np.array_equal(np.load(copy), images)
    made = copy.stat().st_mtime_ns
    assert load_dataset(f"imagenet32:{tmp_path}?classes=5").fingerprint == data.fingerprint
    assert copy.stat().st_mtime_ns == made


def test_damaged_imagenet32(tmp_path):
    write_imagenet32(tmp_path, packed=True)
    with pytest.raises(InvalidInputError, match="1 to 4"):
        load_dataset(f"imagenet32:{tmp_path}?classes=4")
    np.savez(tmp_path / "train_data_batch_2.npz", data=pixels(20, 3), labels=labels(20, 5, 1))
    with pytest.raises(InvalidInputError, match=r"train_data_batch_2.npz.*3072"):
        load_dataset(f"imagenet32:{tmp_path}?classes=5")
    assert not list((tmp_path / ".smash-export-cache").iterdir())


# ModelNet -------------------------------------------------------------------------------------

CUBE = """OFF
8 6 12
0 0 0
1 0 0
1 1 0
0 1 0
0 0 1
1 0 1
1 1 1
0 1 1
4 0 1 2 3
4 4 5 6 7
4 0 1 5 4
4 1 2 6 5
4 2 3 7 6
4 3 0 4 7
"""


def write_modelnet(folder: Path, classes: int = 10) -> None:
    for label in range(classes):
        for part, count in (("train", 3), ("test", 1)):
            place = folder / f"class{label:02}" / part
            place.mkdir(parents=True)
            for number in range(count):
                text = CUBE.replace("OFF\n", "OFF") if number == 1 else CUBE
                stretched = text.replace("\n1 ", f"\n{label + 2} ", 3 - number)
                (place / f"{number}.off").write_text(stretched)


def test_modelnet_meshes_become_rotated_volumes(tmp_path):
    write_modelnet(tmp_path)
    data = load_dataset(f"modelnet10:{tmp_path}?rotations=12")
    assert data.views == 12
    assert data.preprocessing.depth == 32
    assert data.train.images.shape[1:] == (32, 32, 32, 1)
    assert (len(data.train), len(data.validation), len(data.test)) == (240, 120, 120)
    assert set(np.unique(data.test.images)) == {0, 255}
    for split in (data.train, data.validation, data.test):
        assert (split.labels.reshape(-1, 12) == split.labels[::12, None]).all()


def test_a_cube_is_hollow_upright_and_turns():
    vertices, faces = read_text(CUBE)
    cube = voxelise(vertices, faces)
    assert cube[16, 16, 16] == 0
    assert np.array_equal(cube, voxelise(vertices * 50 + 7, faces))
    assert not np.array_equal(cube, voxelise(vertices, faces, np.pi / 6))


def read_text(text: str) -> tuple[np.ndarray, np.ndarray]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.off"
        path.write_text(text)
        return read_off(path)


@pytest.mark.parametrize(
    "text",
    ["", "hello", "OFF\n", "OFF\n8 6 12\n0 0 0\n", CUBE.replace("4 5 6 7", "4 5 6 8"),
     CUBE.replace("1 1 1", "1 1 x"),
     CUBE.replace("1 1 1", "1 1 nan"), "OFF\n999999999999 3 0\n", CUBE.replace("4 0 1 2 3", "4 0 1"),
     "OFF\n3 1 0\n0 0 0\n1 1 1\n2 2 2\n-3 0 1 2\n"],
)  # fmt: skip
def test_damaged_meshes(text):
    with pytest.raises(InvalidInputError, match=r"mesh\.off"):
        read_text(text)


def test_modelnet_npz_and_wrong_groups(tmp_path):
    volumes = (pixels(240, 1, 32, 32, 32) > 200).astype(np.uint8)
    for part in ("train", "test"):
        np.savez(
            tmp_path / f"modelnet10_rot_{part}.npz", features=volumes, targets=np.repeat(np.arange(10), 24)
        )
    data = load_dataset(f"modelnet10:{tmp_path}")
    assert len(data.test) == 240
    np.savez(tmp_path / "modelnet10_rot_train.npz", features=volumes, targets=labels(240, 10))
    with pytest.raises(InvalidInputError, match="views of object"):
        load_dataset(f"modelnet10:{tmp_path}")


def test_predictions_are_averaged_over_views():
    logits = np.arange(12.0).reshape(6, 2)
    assert np.array_equal(average_views(logits, 3), [[2, 3], [8, 9]])
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        average_views(logits, 4)


# Image folders --------------------------------------------------------------------------------


def write_folder(root: Path, parts: tuple[str, ...] = ("",), size=(6, 5), count: int = 6, mode="RGB") -> None:
    for part in parts:
        for name in ("cat", "dog"):
            place = root / part / name
            place.mkdir(parents=True)
            for number in range(count):
                shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
                Image.fromarray(pixels(*shape)).save(place / f"{number}.png")


def test_image_folder(tmp_path):
    write_folder(tmp_path)
    data = load_dataset(f"folder:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape[1:] == (5, 6, 3)
    assert len(data.train) + len(data.validation) + len(data.test) == 12
    grey = load_dataset(f"folder:{tmp_path}?size=4x3&channels=1")
    assert grey.train.images.shape[1:] == (4, 3, 1)


def test_image_folder_with_parts_decodes_as_prediction_does(tmp_path):
    write_folder(tmp_path, ("train", "val", "test"), mode="L")
    data = load_dataset(f"folder:{tmp_path}")
    assert data.preprocessing.channels == 1
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 12, 12)
    assert np.array_equal(data.test.images[0], data.preprocessing.decode(tmp_path / "test/cat/0.png"))
    with pytest.raises(UsageError, match="its own validation"):
        load_dataset(f"folder:{tmp_path}", validation=0.2)


def test_wrong_image_folders(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "dog" / "5.png").write_bytes(b"text")
    with pytest.raises(InvalidInputError, match=r"5\.png"):
        load_dataset(f"folder:{tmp_path}")
    Image.fromarray(pixels(9, 9, 3)).save(tmp_path / "dog" / "5.png")
    with pytest.raises(InvalidInputError, match=r"different sizes.*size="):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "fish").mkdir()
    with pytest.raises(InvalidInputError, match="fish holds no image"):
        load_dataset(f"folder:{tmp_path}?size=4")
    Image.fromarray(pixels(9, 9, 3)).save(tmp_path / "fish" / "1.png")
    with pytest.raises(InvalidInputError, match=r"'fish'.*too few images.*received 1"):
        load_dataset(f"folder:{tmp_path}?size=4")
    for bad in ("size=0", "size=4y4", "channels=2", "colour=red", "size"):
        with pytest.raises(UsageError):
            load_dataset(f"folder:{tmp_path}?{bad}")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInputError, match="at least 2 folders"):
        load_dataset(f"folder:{empty}")


# Arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_medmnist_layout(tmp_path, save):
    images = pixels(40, 7, 7)
    parts = {
        f"{part}_{kind}": value
        for part in ("train", "val", "test")
        for kind, value in (("images", images), ("labels", labels(40, 4)[:, None].astype(np.uint8)))
    }
    save(tmp_path / "med.npz", **parts)
    data = load_dataset(f"arrays:{tmp_path / 'med.npz'}")
    assert np.array_equal(data.validation.images[..., 0], images)
    assert isinstance(data.train.images, np.memmap) == (save is np.savez)


def test_folder_of_npy_with_class_names_and_layouts(tmp_path):
    images = pixels(40, 3, 8, 9)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels(40, 2))
    np.save(tmp_path / "classes.npy", np.array(["no", "yes"]))
    data = load_dataset(f"arrays:{tmp_path}")
    assert data.classes == ("no", "yes")
    assert data.train.images.shape[1:] == (8, 9, 3)
    np.save(tmp_path / "images.npy", pixels(40, 8, 8, 8))
    assert load_dataset(f"arrays:{tmp_path}").preprocessing.depth == 8
    assert load_dataset(f"arrays:{tmp_path}?layout=nchw").preprocessing.channels == 8


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", pixels(40, 8, 8).astype(np.float32), "uint8"),
        ("images", np.array([object()] * 40), "plain numbers|damaged"),
        ("images", pixels(40, 8), "shape"),
        ("images", pixels(39, 8, 8), "number of labels"),
        ("images", np.zeros((40, 8, 8), np.uint8), "same plain colour"),
        ("labels", labels(40, 3) - 1, "label of image 0"),
        ("labels", labels(40, 2).astype(float), "whole numbers"),
        ("labels", np.zeros((40, 14), int), "of no class"),
        ("labels", np.full((40, 3), 0.5), "0 or 1 for each class, .*received 0.5 for image 0"),
        ("labels", np.full((40, 3), np.nan), "0 or 1 for each class"),
        ("labels", np.full((40, 3), "1"), "whole numbers"),
        ("classes", np.array(["a"]), "2 to"),
        ("labels", np.zeros(40, int), "2 to"),
        ("labels", labels(40, 2) * 3, "no training image"),
        ("labels", labels(40, 2) * 10**6, "training labels of .*; expected 0 to 99999; received 1000000"),
    ],
)
def test_wrong_arrays(tmp_path, name, value, message):
    np.save(tmp_path / "images.npy", pixels(40, 8, 8))
    np.save(tmp_path / "labels.npy", labels(40, 2))
    np.save(tmp_path / f"{name}.npy", value)
    with pytest.raises(InvalidInputError, match=message):
        load_dataset(f"arrays:{tmp_path}")


def test_damaged_npz_and_npy(tmp_path):
    np.save(tmp_path / "images.npy", pixels(40, 8, 8))
    np.save(tmp_path / "labels.npy", labels(40, 2))
    path = tmp_path / "images.npy"
    whole = path.read_bytes()
    for data in (whole[:-1], whole[:50], b"", whole.replace(b"(40, 8, 8)", b"(99, 8, 8)")):
        path.write_bytes(data)
        with pytest.raises(InvalidInputError, match=r"images"):
            load_dataset(f"arrays:{tmp_path}")
    archive = tmp_path / "all.npz"
    np.savez_compressed(archive, images=pixels(40, 8, 8), labels=labels(40, 2))
    whole = archive.read_bytes()
    for data in (whole[:200], whole[:60] + b"\xff" * 40 + whole[100:], b"text"):
        archive.write_bytes(data)
        with pytest.raises(InvalidInputError):
            load_dataset(f"arrays:{archive}")


# Your own function, names and splits ----------------------------------------------------------


def test_own_function(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_images.py").write_text(
        "import numpy as np\n"
        "def make(count='40'):\n"
        "    n = int(count)\n"
        "    print('making them')\n"
        "    r = np.random.default_rng(0)\n"
        "    return {'train': (r.integers(0, 256, (n, 4, 4), dtype=np.uint8), np.arange(n) % 2),\n"
        "            'classes': ['a', 'b']}\n"
        "def wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_dataset("my_images:make?count=60")
    assert not capsys.readouterr().out, "stdout is for the answer of a command"
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.validation) + len(data.test) == 60
    with pytest.raises(InvalidInputError, match="is code"):
        load_dataset("my_images:make", allow_code=False)
    with pytest.raises(InvalidInputError, match="received int"):
        load_dataset("my_images:wrong")
    for spec in ("my_images:missing", "no_such_module_here:make"):
        with pytest.raises(UsageError):
            load_dataset(spec)


def test_a_path_without_a_name_is_told_the_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my photos").mkdir()
    (tmp_path / "labels.csv").write_text("path,label\n")
    for spec, meant in [
        ("my photos?size=64", "'folder:my photos?size=64'"),
        (f"{tmp_path}/my photos", f"'folder:{tmp_path}/my photos'"),
        ("labels.csv", "csv:labels.csv"),
        ("digit", "digits"),
    ]:
        with pytest.raises(UsageError, match=re.escape(f"Did you mean {meant}?")):
            load_dataset(spec)
    with pytest.raises(UsageError) as refusal:
        load_dataset("nowhere.csv")
    assert refusal.value.hint is None


@pytest.mark.parametrize(
    "spec", ["", ":x", "digit", "digits:here", "digits?x=1", "mnist:", "folder", "mnist?a"]
)
def test_wrong_specifications(spec):
    with pytest.raises(UsageError):
        load_dataset(spec)


@pytest.mark.parametrize("name", [name for name in dataset_names() if name != "digits"])
def test_missing_empty_and_foreign_paths(name, tmp_path):
    if name in ("parquet", "arrow"):
        pytest.importorskip("pyarrow", reason="the extra data is not installed")
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(InvalidInputError, match=r"expected|does not exist"):
            load_dataset(f"{name}:{path}")
    (tmp_path / "note.txt").write_text("no data")
    with pytest.raises(SmashError):
        load_dataset(f"{name}:{tmp_path / 'note.txt'}")


def test_registry_describes_itself():
    assert [row["name"] for row in describe()] == dataset_names()
    assert all(row["usage"].startswith(row["name"]) and row["summary"] for row in describe())


def test_splits_are_fixed_by_seed_stratified_and_disjoint():
    data, again, other = load_dataset("digits"), load_dataset("digits"), load_dataset("digits", seed=1)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert np.array_equal(data.train.images, again.train.images)
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    for split in (data.train, data.validation, data.test):
        counts = np.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.15 * counts.max() + 1
    values = data.train.images.astype(np.float64) / 255
    assert data.preprocessing.mean[0] == pytest.approx(values.mean())
    assert data.preprocessing.std[0] == pytest.approx(values.std())
    more = load_dataset("digits", validation=0.5)
    assert abs(len(more.validation) - len(more.train)) <= 2


@pytest.mark.parametrize("seed", range(10))
def test_equal_images_stay_on_one_side_of_a_split(seed: int) -> None:
    """What is measured on a copy of a training image is memory."""
    random = np.random.default_rng(seed)
    different = pixels(200, 6, 6, 1)
    rows = random.permutation(np.repeat(np.arange(200), random.integers(1, 5, 200)))
    parts = Parts(("a", "b", "c"), train=Split(different[rows], random.integers(0, 3, len(rows))))
    data = assemble(parts, name="x", spec="x", seed=seed, validation=None)
    sides = [
        {image.tobytes() for image in split.images} for split in (data.train, data.validation, data.test)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 200
    assert len(data.train) + len(data.validation) + len(data.test) == len(rows)
    assert 0.1 < len(data.test) / len(rows) < 0.3
    assert (
        duplicates_of({"train": data.train, "validation": data.validation, "test": data.test}).across_splits
        == 0
    )


def test_copies_of_the_one_image_of_a_class_stay_for_training() -> None:
    one, others = np.repeat(pixels(1, 6, 6, 1), 8, 0), pixels(40, 6, 6, 1)
    parts = Parts(
        ("one", "a", "b"), train=Split(np.concatenate([one, others]), np.append([0] * 8, labels(40, 2) + 1))
    )
    for seed in range(10):
        data = assemble(parts, name="x", spec="x", seed=seed, validation=None)
        assert (data.train.labels == 0).sum() == 8


@pytest.mark.parametrize("share", [0, -1, 0.6, float("nan")])
def test_wrong_share_of_validation(share):
    with pytest.raises(UsageError):
        load_dataset("digits", validation=share)


def test_large_mapped_data_are_split_without_a_copy(tmp_path, monkeypatch):
    from smash_search.data import dataset

    monkeypatch.setattr(dataset, "COPY_LIMIT", 100)
    np.save(tmp_path / "images.npy", pixels(40, 8, 8))
    np.save(tmp_path / "labels.npy", labels(40, 2))
    data = load_dataset(f"arrays:{tmp_path}")
    assert isinstance(data.train.images.base, np.memmap)
    together = Split.joined(data.train, data.validation)
    assert np.shares_memory(together.images, data.train.images)
    assert np.array_equal(together.images, np.concatenate([data.train.images, data.validation.images]))
    assert maps.state_of(together.images) == maps.state_of(data.train.images) is not None
    other_order = Split.joined(data.validation, data.train)
    assert np.array_equal(other_order.images[: len(data.validation)], data.validation.images)
    assert not np.shares_memory(other_order.images, data.train.images)
    np.save(tmp_path / "labels.npy", np.sort(labels(40, 2)))
    with pytest.raises(InvalidInputError, match="Shuffle"):
        load_dataset(f"arrays:{tmp_path}")


def test_parts_may_be_given_whole():
    split = Split(pixels(20, 4, 4, 1), labels(20, 2))
    parts = Parts(("a", "b"), train=split, validation=split, test=Split(pixels(4, 5, 4, 1), labels(4, 2)))
    with pytest.raises(InvalidInputError, match=r"shape of one image.*\(4, 4, 1\)"):
        assemble(parts, name="x", spec="x", seed=0, validation=None)


def test_images_are_known_however_they_are_divided() -> None:
    data, again = load_dataset("digits"), load_dataset("digits", seed=1, validation=0.25)
    assert data.fingerprint != again.fingerprint
    assert data.images_sha256 == again.images_sha256
    images = data.train.images.copy()
    images[5, 0, 0, 0] ^= 1
    changed = replace(data, train=replace(data.train, images=images))
    labels = data.train.labels.copy()
    labels[5] = (labels[5] + 1) % 10
    relabelled = replace(data, train=replace(data.train, labels=labels))
    assert len({data.images_sha256, changed.images_sha256, relabelled.images_sha256}) == 3


@pytest.mark.parametrize("name", ["two\nlines", "a\ttab", "\u200bhidden", " ", "x" * 201])
def test_class_names_that_no_bundle_takes_are_refused_before_training(tmp_path: Path, name: str) -> None:
    np.savez(
        tmp_path / "a.npz", images=pixels(40, 4, 4), labels=labels(40, 2), classes=np.array(["cat", name])
    )
    with pytest.raises(InvalidInputError, match="printable"):
        load_dataset(f"arrays:{tmp_path / 'a.npz'}")


def test_arrays_of_other_names_are_left_out_by_name(tmp_path: Path) -> None:
    images, numbers = pixels(40, 4, 4), labels(40, 2)
    np.savez(
        tmp_path / "a.npz", x_train=images, y_train=numbers, x_valid=images, y_valid=numbers, extra=numbers
    )
    data = load_dataset(f"arrays:{tmp_path / 'a.npz'}")
    assert len(data.validation) == 40
    (left_out,) = data.left_out
    assert (left_out.count, left_out.names[0].endswith("extra")) == (1, True)


def test_idx_files_in_folders_of_their_own_names(tmp_path: Path) -> None:
    write_idx(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / "held")
        path.mkdir()
        (tmp_path / "held").rename(path / path.name)
    assert len(load_dataset(f"mnist:{tmp_path}").test) > 0
