"""Data sets become tensors once: digits, anyone's own torch data sets, and torchvision's by name."""

from __future__ import annotations

import gzip
import pickle
import subprocess
import sys
import textwrap
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

import minicl
from minicl import datasets
from minicl.datasets import Samples, as_samples

MNIST = Path(__file__).parents[2] / "shared" / "data"
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason="there is no MNIST beside the project")


class Own(Dataset[Any]):
    """Anyone's data set: a list of pairs, and how often each was decoded."""

    def __init__(self, inputs: Any, labels: Any) -> None:
        self.inputs, self.labels, self.decoded = list(inputs), list(labels), 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.decoded += 1
        return self.inputs[index], self.labels[index]


def test_digits() -> None:
    train, test = datasets.load("digits")
    assert len(train) + len(test) == 1797
    for samples in (train, test):
        assert samples.x.shape[1:] == (1, 8, 8)
        assert samples.x.dtype == torch.float32
        assert samples.y.dtype == torch.int64
        assert float(samples.x.min()) == 0
        assert float(samples.x.max()) == 1
        assert set(samples.y.tolist()) == set(range(10))


def test_digits_are_scikit_learns_digits() -> None:
    from sklearn.datasets import load_digits

    train, test = datasets.load("digits")
    ours = sorted((y, *x.flatten().tolist()) for s in (train, test) for x, y in zip(s.x, s.y.tolist(), strict=True))
    theirs = load_digits()
    assert ours == sorted((int(y), *x.tolist()) for x, y in zip(theirs.data / 16, theirs.target, strict=True))


bytes_of_images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))


@given(bytes_of_images)
def test_grey_pictures(images: np.ndarray) -> None:
    samples = as_samples(Own(map(Image.fromarray, images), range(len(images))))
    assert samples.x.shape == (len(images), 1, *images.shape[1:])
    assert samples.x.dtype == torch.float32
    assert np.array_equal(samples.x.squeeze(1).numpy(), images.astype(np.float32) / 255)
    assert samples.y.tolist() == list(range(len(images)))


def test_colour_pictures_have_their_channels_first() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    image[0, 1] = (255, 51, 0)
    samples = as_samples(Own([Image.fromarray(image)], [4]))
    assert samples.x.shape == (1, 3, 2, 3)
    assert samples.x[0, :, 0, 1].tolist() == [1, pytest.approx(0.2), 0]


def test_black_and_white_pictures() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert as_samples(Own([image], [0])).x.tolist() == [[[[1.0, 0.0]]]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_inputs_keep_their_values(dtype: torch.dtype) -> None:
    x = torch.tensor([[-1.5, 0.25], [3.0, 200.0]], dtype=dtype)
    samples = as_samples(TensorDataset(x, torch.tensor([0, 1])))
    assert samples.x.dtype == torch.float32
    assert torch.equal(samples.x, x.float())


def test_integers_that_are_no_pictures_stay_integers() -> None:
    assert as_samples((torch.tensor([[1, 2]]), torch.tensor([0]))).x.dtype == torch.int64  # tokens, for an embedding


@pytest.mark.parametrize("label", [7, np.int64(7), np.uint8(7), torch.tensor(7), torch.tensor([7], dtype=torch.uint8)])
def test_labels_of_any_integer_kind(label: Any) -> None:
    samples = as_samples(Own([torch.zeros(2)], [label]))
    assert samples.y.dtype == torch.int64
    assert samples.y.tolist() == [7]


def test_all_forms_of_the_same_data_give_the_same_samples() -> None:
    x = torch.randint(0, 256, (6, 1, 3, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([3, 3, 9, 9, 3, 9])
    whole = TensorDataset(x, y)
    forms: list[Any] = [
        whole,
        Subset(whole, range(6)),
        (x, y),
        [x, y],
        (x.numpy(), y.numpy()),
        Samples(x, y),
        Own(x, y),
        Own(x.numpy(), y.tolist()),
        list(zip(x, y, strict=True)),
        Own((Image.fromarray(image[0].numpy()) for image in x), y.tolist()),
    ]
    for form in forms:
        samples = as_samples(form)
        assert torch.equal(samples.x, x.float() / 255), type(form)
        assert torch.equal(samples.y, y), type(form)


def test_any_pair_of_data_sets_makes_a_stream_and_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([-5, 40, 7, 1000]).repeat_interleave(torch.tensor([8, 30, 9, 20]))  # gaps, unequal counts
    x = torch.rand(len(y), 1, 4, 4, generator=generator) * 0.2
    for column, label in enumerate(y.unique()):
        x[y == label, :, :, column] += 0.8
    train = Own((Image.fromarray((image[0] * 255).byte().numpy()) for image in x), y.tolist())
    test = Subset(TensorDataset(x, y), list(range(0, len(y), 3)))
    stream = minicl.split((train, test), 2)
    assert [task.classes for task in stream] == [(-5, 7), (40, 1000)]
    result = minicl.run(minicl.FineTune(minicl.mlp(16, 32)), stream, epochs=20, batch_size=8)
    assert result.average_accuracy == 1
    assert train.decoded == len(y)  # once, not in every epoch


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(2), 0)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Stream(), "the train data is a Stream; allowed: a torch dataset with a length"),
        (5, "the train data is 5; allowed"),
        (None, "the train data is None"),
        ("digits", "the train data is 'digits'"),
        ({}, "the train data is a dict"),
        ([], "the train data set is empty"),
        (torch.zeros(3, 2), r"an item of the train data set is a Tensor; allowed: a pair \(input, label\)"),
        ([(torch.zeros(2), 0, 1)], "an item of the train data set is a tuple"),
        ([(torch.zeros(2), 0), (torch.zeros(3), 1)], r"different shapes, such as \(2,\) and \(3,\)"),
        ([(torch.zeros(2), 0.5)], "labels that are not single integers, such as 0.5"),
        ([(torch.zeros(2), "cat")], "labels that are not single integers, such as 'cat'"),
        ([(torch.zeros(2), None)], "labels that are not single integers, such as None"),
        ([(torch.zeros(2), 0), (torch.zeros(2), [0, 1])], r"not single integers, such as \[0, 1\]"),
    ],
)
def test_data_of_another_kind_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minicl.split((data, TensorDataset(torch.zeros(1, 2), torch.tensor([0]))), 1)


def test_an_error_in_the_data_sets_own_code_comes_through() -> None:
    class Broken(Own):
        def __getitem__(self, index: int) -> Any:
            raise TypeError("my own mistake")

    with pytest.raises(TypeError, match="my own mistake"):
        as_samples(Broken([1], [1]))


def test_a_dataset_is_a_name_or_a_pair() -> None:
    script = """
        import minicl  # without the tests' type checks in between
        for dataset in (3, (1, 2, 3), [], None):
            try:
                minicl.split(dataset)
            except ValueError as error:
                print(str(error).partition("; allowed: a name (digits, mnist,")[0])
    """
    assert alone(script).splitlines() == [f"dataset is {kind}" for kind in ("3", "a tuple", "a list", "None")]


def test_samples_have_one_label_an_input() -> None:
    with pytest.raises(ValueError, match="3 inputs but 2 labels"):
        Samples(torch.zeros(3, 1), torch.zeros(2, dtype=torch.long))


# ---- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", datasets.TORCHVISION)
def test_a_missing_file_says_which_command_fetches_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        minicl.split(name, root=tmp_path / "nowhere")
    message = str(caught.value)
    assert f"minicl.split({name!r}, root='{tmp_path / 'nowhere'}', download=True)" in message
    assert f"minicl run finetune split-{name} --root {tmp_path / 'nowhere'} --download" in message
    assert not (tmp_path / "nowhere").exists()


@needs_mnist
def test_mnist_is_what_torchvision_reads() -> None:
    theirs = datasets.torchvision().datasets.MNIST(str(MNIST), train=False)
    _, test = datasets.load("mnist", MNIST)
    assert len(test) == len(theirs) == 10_000
    for i in (0, 1234, 9999):
        picture, label = theirs[i]
        assert torch.equal(test.x[i], as_samples([(picture, label)]).x[0])
        assert int(test.y[i]) == label


@needs_mnist
def test_mnist_that_is_cut_short_is_said_to_be_damaged(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (MNIST / "MNIST" / "raw").iterdir():
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (raw / path.name.removesuffix(".gz")).write_bytes(content[:1000])
    with pytest.raises(ValueError, match=r"the files of mnist in the folder .* are damaged .* fetch them again"):
        datasets.load("mnist", tmp_path)


def test_color_data_sets_have_their_channels_first() -> None:
    class Held:
        data, targets = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3), [6, 1]

    samples = datasets._raw(Held())
    assert samples.x.shape == (2, 3, 4, 5)
    assert float(samples.x[1, 2, 3, 4]) == pytest.approx(119 / 255)
    assert samples.y.tolist() == [6, 1]


def test_pictures_of_several_sizes_are_brought_to_one() -> None:
    transform = datasets._square(16)
    for size in ((20, 31), (64, 8)):
        assert transform(Image.new("L", size)).shape == (3, 16, 16)


def alone(script: str) -> str:
    """What a script prints that runs in a fresh process."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_torchvision_loads_whatever_was_tried_before() -> None:
    """Where its operators do not fit torch, a plain import fails; ours works, and goes on working."""
    script = """
        for attempt in range(2):
            try:
                import torchvision
            except (RuntimeError, AttributeError):
                pass
        from minicl import datasets
        first = datasets.torchvision()
        assert datasets.torchvision() is first
        import torch, torchvision
        assert torchvision is first
        assert torchvision.models.resnet18().eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
        print(hasattr(first.datasets, "MNIST"))
    """
    assert alone(script) == "True"


def test_the_remedy_where_the_operators_are_missing() -> None:
    """The failure of pytorch/vision #9085, acted out: the first import raises and leaves half-loaded modules behind."""
    script = """
        import importlib.abc, importlib.machinery, sys, torch

        class Loader(importlib.abc.Loader):
            def create_module(self, spec):
                return None

            def exec_module(self, module):
                if module.__name__ == "torchvision":
                    module.__path__ = []
                    import torchvision.extension
                    # what torchvision's _meta_registrations.py does
                    torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
                else:
                    module.whole = len(tries)
                    tries.append(module.__name__)

        class Finder(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path, target=None):
                if name.partition(".")[0] == "torchvision":
                    return importlib.machinery.ModuleSpec(name, Loader(), is_package=name == "torchvision")

        tries = []
        sys.meta_path.insert(0, Finder())
        from minicl import datasets
        first = datasets.torchvision()
        assert first is datasets.torchvision()
        print(tries, first.extension.whole)
    """
    assert alone(script) == "['torchvision.extension', 'torchvision.extension'] 1"


def test_other_errors_of_torchvision_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def __init__(self, error: Exception) -> None:
            self.error = error

        def find_spec(self, name: str, path: Any, target: Any = None) -> None:
            if name == "torchvision":
                raise self.error

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(RuntimeError("out of luck")), *sys.meta_path])
    with pytest.raises(RuntimeError, match="out of luck"):
        datasets.torchvision()
    monkeypatch.setattr(sys, "meta_path", [Finder(ImportError("none")), *sys.meta_path[1:]])
    with pytest.raises(ImportError, match=r"pip install 'minicl\[vision\]'"):
        datasets.torchvision()


def test_nothing_heavy_loads_with_the_package() -> None:
    script = """
        import sys, torch
        before = set(sys.modules)
        import minicl
        heavy = {"torchvision", "matplotlib", "sklearn", "scipy", "tqdm", "pandas", "PIL", "IPython"}
        print(sorted(heavy & (set(sys.modules) - before)))
    """
    assert alone(script) == "[]"


@pytest.mark.parametrize("error", [RuntimeError("Error downloading x.gz:"), urllib.error.URLError("no network")])
def test_a_download_that_fails_says_what_and_where_to(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets.torchvision().datasets, "KMNIST", fail)
    with pytest.raises(ConnectionError, match=f"kmnist could not be fetched into the folder '{tmp_path}': "):
        minicl.split("kmnist", root=tmp_path, download=True)


class Clothes(torch.utils.data.Dataset):
    """As torchvision's data sets are: integers for labels, and names for them."""

    classes = ("T-shirt", "Trouser", "Bag", "Boot")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.full((1, 2, 2), i / 12), i % 4


def test_names_of_classes_are_kept_and_understood(tmp_path: Path) -> None:
    stream = minicl.split((Clothes(), Clothes()), classes=[["Boot", 1], [0, "Bag"]])
    assert [task.classes for task in stream] == [("Boot", "Trouser"), ("T-shirt", "Bag")]
    assert [task.name for task in stream] == ["Boot, Trouser", "T-shirt, Bag"]
    assert stream.settings["classes"] == [[3, 1], [0, 2]]  # the same stream, however its classes are named
    learner = minicl.FineTune(minicl.mlp(4, 5))
    minicl.run(learner, stream, epochs=1, progress=False)
    learner.save(tmp_path / "learner")
    assert minicl.FineTune.load(tmp_path / "learner", minicl.mlp(4, 5)).classes_of(1) == ["T-shirt", "Bag"]
    with pytest.raises(ValueError, match=r"names 'Hat', and there is no such class; there are: 0 \(T-shirt\), 1 "):
        minicl.split((Clothes(), Clothes()), classes=[["Hat"], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match="names 3 twice"):
        minicl.split((Clothes(), Clothes()), classes=[["Boot", 3], [0, 1, 2]])


def test_names_that_are_the_numbers_again_are_none() -> None:
    class Numbers(Clothes):
        classes = ("0 - zero", "1 - one", "2 - two", "3 - three")  # type: ignore[assignment]

    assert [task.name for task in minicl.split((Numbers(), Numbers()), 2)] == ["classes 0-1", "classes 2-3"]


def test_cifar_has_the_names_that_stand_in_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar = datasets.torchvision().datasets.cifar
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # these are not the ten thousands of real pictures
    folder = tmp_path / cifar.CIFAR10.base_folder
    folder.mkdir()
    pictures = {"data": np.zeros((4, 3 * 32 * 32), np.uint8), "labels": [0, 1, 2, 3]}
    for name, _ in (*cifar.CIFAR10.train_list, *cifar.CIFAR10.test_list):
        (folder / name).write_bytes(pickle.dumps(pictures))
    names = ["airplane", "automobile", "bird", "cat"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    stream = minicl.split("cifar10", root=tmp_path, classes=[["cat", "bird"], [0, 1]])
    assert [task.classes for task in stream] == [("cat", "bird"), ("airplane", "automobile")]
