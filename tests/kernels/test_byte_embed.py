"""byte_embed: one rounding, what NaN and infinity reach, tokens that do not exist; the rest is in OpTests."""

from __future__ import annotations

import random

import pytest
import torch
from support.ops import BF16, F16, F32, F64, Backend, OpTests, equal, results, seeded, threads
from torch import Tensor

from bgpt_fast.kernels.byte_embed import op
from bgpt_fast.kernels.byte_embed.op import byte_embed
from bgpt_fast.kernels.byte_embed.reference import byte_embed_reference

OPS = op.OPS


class TestByteEmbed(OpTests):
    NAME = "byte_embed"
    # Activations and tables: one dtype, or float32 tables.
    DTYPES = ((F32, F32), (BF16, BF16), (BF16, F32), (F16, F16), (F16, F32))
    # T, S, D: none, one of everything, odd sizes, patches of more than 16 bytes, several blocks of columns.
    SHAPES = ((0, 16, 8), (0, 4, 8), (1, 1, 1), (3, 16, 40), (15, 3, 16), (17, 2, 257), (2, 17, 192))
    LARGE_SHAPES = ((200, 4, 24), (17, 3, 33), (15, 17, 5), (2, 2, 257))
    STRIDED_SHAPE = (6, 4, 20)
    GPU_SHAPE = (300, 16, 200)
    KERNELS = ("_byte_embed_fwd_kernel", "_one_hot_sums_kernel")
    LEAST_CASES = 21
    V = 257
    function = staticmethod(byte_embed)

    def sample(self, shape, dtypes=(F32, F32), seed=0):  # type: ignore[no-untyped-def]
        """features, patches, wte, wpe."""
        T, S, D = shape
        features, wte, wpe = seeded(sum(shape) + seed, (T, D), (self.V, D), (S + 1, D))
        patches = torch.randint(0, self.V, (T, S), generator=torch.Generator().manual_seed(seed)).short()
        return [features.to(dtypes[0]), patches, wte.to(dtypes[1]), wpe.to(dtypes[1])]

    @staticmethod
    def plain(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
        """Added in float32 and rounded once; gradients of the tables are added in float32 too."""
        wide = torch.promote_types(features.dtype, F32)
        return byte_embed_reference(features.to(wide), patches, wte.to(wide), wpe.to(wide)).to(features.dtype)

    @staticmethod
    def wrong_version(features: Tensor, patches: Tensor, wte: Tensor, wpe: Tensor) -> Tensor:
        return byte_embed(features, patches.roll(1, 0), wte, wpe)

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        return {"ulps": 2 if backend.name == "cpu" else 1}

    def draw_shape(self, stream: random.Random) -> tuple[int, int, int]:
        return stream.randrange(40), stream.randrange(1, 18), stream.randrange(1, 70)

    def layouts(self) -> dict[str, list[Tensor]]:
        features, patches, wte, wpe = self.sample((4, 3, 2), (F64, F64))
        tables, padded = (wte, wpe), torch.zeros(4, 6, dtype=torch.int16)
        padded[:, ::2] = patches
        shapes = {"no patch": (0, 3, 2), "no column": (3, 3, 0), "size 1": (1, 1, 1), "one byte a patch": (3, 1, 4)}
        columns = [t.t().contiguous().t() for t in (features, patches, *tables)]
        sliced = [t.repeat_interleave(2, 1)[:, ::2] for t in (features, *tables)]
        return {
            "plain": [features, patches, *tables],
            "columns": columns,
            "sliced": [sliced[0], padded[:, ::2], *sliced[1:]],
            "stride 0": [t[:1].expand(t.shape) for t in (features, patches, *tables)],
            "one token": [features, torch.full_like(patches, self.V - 1), *tables],
            "many positions": [features, patches, wte, torch.randn(40, 2, dtype=F64)],
            "exactly S positions": [features, patches, wte, wpe[:3].clone()],
            "seventeen bytes a patch": self.sample((2, 17, 3), (F64, F64)),
            **{name: self.sample(shape, (F64, F64)) for name, shape in shapes.items()},
        }

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        features, patches, wte, wpe = self.sample((3, 4, 8))
        half = features.bfloat16()
        return {
            "features: expected a torch.Tensor, got NoneType": (None, patches, wte, wpe),
            "features: expected dtype float32 or .*, got int64": (features.long(), patches, wte, wpe),
            r"features: expected shape \[T, D\], got \[24\]": (features.flatten(), patches, wte, wpe),
            "patches: expected dtype int16, got int64": (features, patches.long(), wte, wpe),
            r"patches: expected shape \[3, S\], got \[2, 4\]": (features, patches[:2], wte, wpe),
            "patches: expected at least 1 byte a patch": (features, patches[:, :0], wte, wpe),
            "patches: expected device cpu": (features, patches.to("meta"), wte, wpe),
            "wte: expected dtype float32, got bfloat16": (features, patches, wte.bfloat16(), wpe),
            "wte: expected dtype bfloat16 or float32, got float16": (half, patches, wte.half(), wpe),
            "wte: expected a row for each of .*, got 256": (features, patches, wte[:256], wpe),
            "wte: expected device cpu": (features, patches, wte.to("meta"), wpe),
            "wpe: expected dtype bfloat16, got float32": (half, patches, wte.bfloat16(), wpe),
            r"wpe: expected shape \[L, 8\], got \[5, 7\]": (features, patches, wte, wpe[:, :7]),
            "wpe: expected at least 4 rows, one a byte of a patch, got 3": (features, patches, wte, wpe[:3]),
            "wpe: expected device cpu": (features, patches, wte, wpe.to("meta")),
            "expected tokens 0…256, got -1…-1": (features, torch.full_like(patches, -1), wte, wpe),
            "expected tokens 0…256, got 257…257": (features, torch.full_like(patches, 257), wte, wpe),
        }

    def test_values_are_rounded_once(self, backend: Backend, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
        for shape in self.SHAPES:
            inputs = self.inputs(backend, shape, dtypes)
            assert torch.equal(byte_embed(*inputs), self.plain(*inputs))


class TestByteEmbedOf128Symbols(TestByteEmbed):
    test_compile_cases = None  # type: ignore[assignment]
    SHAPES = ((1, 1, 1), (3, 16, 40))
    LARGE_SHAPES = ((200, 4, 24), (15, 17, 5))
    V = 128

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        features, patches, wte, wpe = self.sample((3, 4, 8))
        return {"expected tokens 0…127, got 128…128": (features, torch.full_like(patches, 128), wte, wpe)}


inputs = TestByteEmbed().inputs


def test_patches_are_independent(backend: Backend) -> None:
    T = 20 if backend.is_interpreter else 300
    features, patches, wte, wpe = inputs(backend, (T, 5, 24))
    x = byte_embed(features, patches, wte, wpe)
    assert torch.equal(x[7:9], byte_embed(features[7:9], patches[7:9], wte, wpe))
    features[3, 5], features[4, 6], features[5] = torch.nan, -torch.inf, 1e4
    changed = byte_embed(features, patches, wte, wpe)
    assert not torch.equal(changed[3, 0], x[3, 0])  # the negative control
    assert changed[3, 0, 5].isnan()
    assert changed[4, 0, 6] == -torch.inf
    assert torch.equal(changed[:, 1:], x[:, 1:])
    others = [0, 1, 2, *range(6, T)]
    assert torch.equal(changed[others], x[others])


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul")
def test_nan_in_the_gradient_stays_visible(backend: Backend) -> None:
    arguments = inputs(backend, (6, 4, 8))
    patches, dx = arguments[1], torch.ones(6, 4, 8, device=backend.device)
    dx[2, 3, 1] = torch.nan
    dfeatures, dwte, dwpe = results(byte_embed, arguments, [dx]).gradients
    assert dfeatures.isfinite().all()
    assert dwte[patches[2, 2].long(), 1].isnan()
    assert dwpe[3, 1].isnan()
    if backend.name == "cpu":
        assert dwte.isnan().sum() + dwpe.isnan().sum() == 2
    others = [0, *range(2, 8)]
    assert dwte[:, others].isfinite().all()
    assert dwpe[:, others].isfinite().all()


def test_the_cpu_adds_rows_in_order() -> None:
    arguments = TestByteEmbed().sample((300, 4, 48))
    _, patches, wte, _ = arguments
    dx = seeded(1, (300, 4, 48))[0]
    in_order = torch.zeros_like(wte)
    for token, row in zip(patches[:, :-1].flatten().tolist(), dx[:, 1:].flatten(0, 1), strict=True):
        in_order[token] += row
    first = results(byte_embed, arguments, [dx])
    assert torch.equal(first.gradients[1], in_order)
    assert not torch.equal(first.gradients[1], in_order.nextafter(torch.tensor(torch.inf)))  # the negative control
    for count in (1, 2, 3):
        with threads(count):
            assert equal(results(byte_embed, arguments, [dx]).all, first.all)


def test_the_gpu_adds_nothing_for_tokens_out_of_range(backend: Backend) -> None:
    if backend.name == "cpu":
        return  # refuses them: see wrong_arguments
    features, patches, wte, wpe = inputs(backend, (4, 3, 16))
    patches[0, 0], patches[1, 1], patches[2, 2] = -1, 257, 999
    (x,), (_, dwte, _) = results(byte_embed, [features, patches, wte, wpe], [torch.ones(4, 3, 16)])
    assert torch.equal(x[0, 1], wpe[1])
    assert torch.equal(x[1, 2], wpe[2])
    assert dwte.sum() == (4 * 2 - 2) * 16
