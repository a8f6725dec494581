#!/usr/bin/env python
"""Damage weights, configs, images and pickles at random, or make hostile ones, and read them.

    python dev/fuzz_files.py --count 2000 --seed 0 [--kinds weights configs images pickles]

Every file must end in an error that a user can read (one of the types below, naming the file), or
load. What loads must be right as far as that can be seen from outside: weights are those that stand
in the file, an image is an image, a pickle holds plain values. Some files ask for code to be run,
which would make a folder; it must not be there afterwards. A file that takes longer than a minute
or more than 4 GiB of further memory is a failure, too. Exit status 1 if there is one.
"""

import argparse
import faulthandler
import io
import json
import os
import pickle
import random
import re
import resource
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import igvg_d2  # noqa: F401  (first: it names a missing requirement in one line)

# isort: split
import numpy as np
import onnx
import torch
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import save, save_file
from tqdm import tqdm

from igvg_d2.checkpoint import GroundingCheckpointer, read_checkpoint, read_metadata
from igvg_d2.data.datasets.pickles import loads_plain
from igvg_d2.engine import setup_config
from igvg_d2.io.image import read_image
from igvg_d2.testing import tiny_cfg

ROOT = Path(__file__).resolve().parents[1]
_SECONDS, _BYTES = 60, 4 << 30


class Hostile:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def damage_bytes(data, rng):
    """Flip, set, cut, insert, delete or repeat bytes, up to ten times."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 10))):
        # Half of them near the beginning, where headers are.
        position = rng.randrange(min(len(data), 200) if rng.random() < 0.5 else len(data))
        how = rng.choice(("flip", "set", "cut", "insert", "delete", "repeat"))
        if how == "flip":
            data[position] ^= 1 << rng.randrange(8)
        elif how == "set":
            data[position] = rng.choice((0, 255, rng.randrange(256)))
        elif how == "cut":
            del data[position + 1 :]
        elif how == "insert":
            data[position:position] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif how == "delete" and len(data) > 40:
            del data[position : position + rng.randrange(1, 20)]
        elif how == "repeat":
            data[position:position] = data[position : position + rng.randrange(1, 200)]
    return bytes(data)


class Weights:
    """MODEL.WEIGHTS of three formats, into a small model."""

    errors = (ValueError,)

    def __init__(self, folder):
        self.folder, self.model = folder, build_model(tiny_cfg())
        self.state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.loader = GroundingCheckpointer(self.model)

    def make(self, rng, marker):
        """(path, expected tensors or None where the file itself decides)."""
        suffix = rng.choice(("pth", "legacy.pth", "safetensors"))
        path = self.folder / f"weights.{suffix}"
        state, is_odd = dict(self.state), rng.random() < 0.4
        content = {"model": state}
        if is_odd and suffix != "safetensors":
            name, odd = rng.choice(list(state)), self._odd(rng, marker)
            place = rng.choice((state, content, {"trainer": 1}))
            place[rng.choice((name, "model", "ema", "num_queries", "x" * 999, "\x1b[2J", 5))] = odd
            content = rng.choice((content, content, odd, [content], {"state_dict": state}))
        if suffix == "safetensors":
            metadata = {"num_queries": rng.choice(("4", "1e9", "-1", ""))} if is_odd else None
            save_file(state, path, metadata=metadata)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=suffix == "pth")
        if not is_odd:
            path.write_bytes(damage_bytes(path.read_bytes(), rng))
        return path, self.state if suffix == "pth" and not is_odd else None

    def _odd(self, rng, marker):
        tensor, hostile = next(iter(self.state.values())), Hostile(marker)
        odd = [None, 1, float("nan"), "x", b"x", [], {}, (), {"model": None}, hostile, 10**30]
        odd += [torch.zeros(0), torch.zeros(3), tensor.double(), tensor.to_sparse(), {1: 2}]
        odd += [tensor.to("meta"), torch.full_like(tensor, float("inf")), np.float64(1.0), [[[[]]]]]
        return rng.choice([*odd, np.array([hostile], object), np.zeros(3)])

    def read(self, path):
        """What the model holds after the file was loaded."""
        self.model.load_state_dict(self.state)
        try:
            self.loader.load(str(path))
        except self.errors:
            assert self.is_same(self.state), "a refused file changed the model"
            raise
        return self.model.state_dict()

    def is_same(self, state):
        found = self.model.state_dict()
        return all(torch.equal(found[k], v.to(found[k].dtype)) for k, v in state.items())

    def check(self, path, _, expected):
        """Every tensor is that of the file."""
        if path.suffix == ".safetensors":
            expected = plain_safetensors(path.read_bytes())
        assert expected is None or self.is_same(expected), "other weights than in the file"


def plain_safetensors(data):
    """Tensors of a file of safetensors, read from its definition."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kinds = {"F32": np.float32, "F64": np.float64, "F16": np.float16, "I64": np.int64}
    return {
        name: torch.tensor(
            np.frombuffer(body[slice(*x["data_offsets"])], kinds[x["dtype"]]).reshape(x["shape"])
        )
        for name, x in header.items()
        if name != "__metadata__" and x["dtype"] in kinds
    }


class Configs:
    """--config-file with its _BASE_, and the config in the header of weights and of ONNX."""

    errors = (ValueError, FileNotFoundError, KeyError)

    def __init__(self, folder):
        self.folder = folder
        self.texts = [(path.parent, path.read_text()) for path in ROOT.glob("configs/*/*.yaml")]

    def make(self, rng, marker):
        (parent, text), path = rng.choice(self.texts), self.folder / "config.yaml"
        bomb = "".join(f"X{i + 1}: &x{i + 1} [{f'*x{i}, ' * 9}]\n" for i in range(30))
        hostile = [
            *(f"X: !!python/object/apply:os.mkdir ['{marker}']", f"_BASE_: {path}", "MODEL: 5"),
            *(f"MODEL: !!python/object/new:os.mkdir ['{marker}']", "_BASE_: absent.yaml"),
            *("_BASE_: [1]", f"X0: &x0 1\n{bomb}", "A: &a [*a]", "SEED: " + "9" * 5000, "[" * 2000),
            *("SEED: \x1b[2J", "? {a: b}\n: c", "MODEL:\n  WEIGHTS: {}", "VERSION: x"),
            "SOLVER: {BASE_LR: .nan, STEPS: 5}",
        ]
        lines = re.sub('_BASE_: "?', lambda found: f"{found[0]}{parent}/", text).splitlines()
        at, is_hostile = rng.randrange(len(lines) + 1), rng.random() < 0.5
        lines[at:at] = [rng.choice(hostile)] if is_hostile else []
        data = "\n".join(lines).encode()
        data = data if is_hostile else damage_bytes(data, rng)
        if rng.random() < 0.4:  # in a header; with a _BASE_ all of them would be refused
            header = {"config": re.sub(b"_BASE_.*", b"", data).decode(errors="replace")}
            path, data = path.with_suffix(".safetensors"), save({"x": torch.zeros(9)}, header)
            if rng.random() < 0.6:
                facts = [onnx.StringStringEntryProto(key=k, value=v) for k, v in header.items()]
                data = onnx.ModelProto(ir_version=9, metadata_props=facts).SerializeToString()
                path, data = path.with_suffix(".onnx"), rng.choice((data, damage_bytes(data, rng)))
        path.write_bytes(data)
        return path, None

    def read(self, path):
        return setup_config(str(path))

    def check(self, path, cfg, _):
        if path.suffix == ".onnx":
            facts = onnx.load_model_from_string(path.read_bytes()).metadata_props
            assert read_metadata(str(path)) == {fact.key: fact.value for fact in facts}
        assert cfg.MODEL.DEVICE in ("cpu", "cuda") or "DEVICE" in path.read_text(errors="ignore")


class Images:
    """Images of many formats, under any ending."""

    errors = (ValueError,)

    def __init__(self, folder):
        self.folder, rng = folder, np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (23, 31, 3), np.uint8))
        self.files = []
        for mode in ("RGB", "L", "P", "1", "RGBA", "I;16", "F", "CMYK", "LA"):
            for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "EPS", "PDF", "ICO"):
                buffer = io.BytesIO()
                try:
                    image.convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, kind)
                except (OSError, ValueError, KeyError):
                    continue
                self.files.append(buffer.getvalue())

    def make(self, rng, marker):
        path = self.folder / f"image.{rng.choice(('jpg', 'png', 'tif', 'eps'))}"
        data = rng.choice(self.files)
        program = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({marker}) (w) file\n"
        data = program.encode() if rng.random() < 0.05 else damage_bytes(data, rng)
        path.write_bytes(data)
        return path, None

    def read(self, path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's own, about tags and large images
            return read_image(str(path), "RGB")

    def check(self, path, pixels, _):
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


class Pickles:
    """Pickled records, and the pickles within a checkpoint."""

    errors = (ValueError,)

    def __init__(self, folder):
        self.folder = folder
        self.records = [{"ref_id": 1, "sentences": [{"sent": "a", "sent_ids": [1]}]}] * 3

    def make(self, rng, marker):
        kind = rng.choice(("honest", "hostile", "opcodes"))
        if kind == "opcodes":
            call = f"cos\nmkdir\n(V{marker}\ntR".encode()
            pieces = [b"(", b"l", b"d", b"t", b"}", b"]", b")", b"a", b"e", b"u", b"s", b"0", b"2"]
            pieces += [b"K\x01", b"U\x01x", b"q\x01", b"h\x01", b"\x85", b"\x86", b"b", b"R", b"N"]
            pieces += [b"\x94", b"\x93", b"o", b"I1\n"]
            pieces += [b"r\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f"]
            pieces += [call, b"\x8c\x02os\x8c\x05mkdir\x93", b"\x8a\xff" + b"\xff" * 255, b"."]
            data = b"\x80\x02" + b"".join(rng.choices(pieces, k=rng.randrange(1, 60))) + b"."
        else:
            content = [*self.records, Hostile(marker)] if kind == "hostile" else self.records
            data = pickle.dumps(content, rng.randrange(6))
            data = damage_bytes(data, rng) if kind == "honest" and rng.random() < 0.9 else data
        path = self.folder / rng.choice(("refs.p", "weights.pth", "weights.pkl"))
        if path.suffix == ".pth":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", data)
                archive.writestr("archive/version", "3\n")
        else:
            path.write_bytes(data)
        return path, None

    def read(self, path):
        if path.suffix == ".p":
            return loads_plain(path.read_bytes(), str(path))
        return read_checkpoint(str(path))

    def check(self, path, value, _):
        """Plain values only; a list may hold itself."""
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            plain = (dict, list, tuple, set, str, bytes, bool, int, float, type(None), torch.Tensor)
            assert type(value) in plain, f"an object: {type(value)}"
            if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                waiting += [*value, *(value.values() if isinstance(value, dict) else ())]


KINDS = {"weights": Weights, "configs": Configs, "images": Images, "pickles": Pickles}


def fuzz(kind, count, seed, folder, progress=lambda items: items):
    """Read `count` files of a kind.

    Args:
        kind: of ``KINDS``.
        count, seed: how many, and of which random sequence.
        folder: for the files; a failing one stays there.
        progress: wraps the loop.

    Returns:
        Counter of "refused", "loaded" and "failed", and a text for each failure.
    """
    folder = Path(folder)
    target, outcomes, failures = KINDS[kind](folder), Counter(), []
    for number in progress(range(count)):
        rng, marker = random.Random(f"{kind} {seed} {number}"), folder / "marker"
        path, expected = target.make(rng, str(marker))
        try:
            target.check(path, target.read(path), expected)
            outcome = "loaded"
        except target.errors as error:
            named = path.name in str(error) or isinstance(error, FileNotFoundError)
            outcome = "refused" if named else f"unnamed: {error!r}"
        except BaseException as error:  # noqa: B902  any other is what this script looks for
            outcome = repr(error)
        if marker.exists():
            marker.rmdir()
            outcome = "code was run"
        if outcome not in ("refused", "loaded"):
            failures.append(f"{kind} {number}: {outcome[:300]}")
            path.rename(path.with_name(f"failure_{number}_{path.name}"))
        outcomes[outcome if outcome in ("refused", "loaded") else "failed"] += 1
    return outcomes, failures


def main(argv=None):
    """Print the outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args(argv)
    pages, status = int(Path("/proc/self/statm").read_text().split()[0]), 0
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _BYTES,) * 2)

    def watched(items):
        for item in tqdm(items):
            # Ends the process, also where C code never comes back.
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            yield item
        faulthandler.cancel_dump_traceback_later()

    for kind in args.kinds:
        folder = tempfile.mkdtemp(prefix=f"fuzz_{kind}_")
        outcomes, failures = fuzz(kind, args.count, args.seed, folder, watched)
        print(f"{args.count} {kind}, seed {args.seed}: {dict(outcomes)}", flush=True)
        if failures:
            status = 1
            print(f"{len(failures)} failures, files in {folder}:", *failures[:20], sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
