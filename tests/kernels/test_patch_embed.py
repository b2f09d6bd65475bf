"""patch_embed, with positions and without: order of sums, what NaN reaches, wrong tokens; the rest is in OpTests."""

from __future__ import annotations

import random

import pytest
import torch
from support.ops import BF16, F16, F32, F64, Backend, OpTests, check_errors, equal, results, seeded, threads
from torch import Tensor

from bgpt_fast.kernels.patch_embed import op
from bgpt_fast.kernels.patch_embed.op import patch_embed
from bgpt_fast.kernels.patch_embed.reference import patch_embed_reference

OPS = op.OPS


class TestPatchEmbed(OpTests):
    NAME = "patch_embed"
    DTYPES = (F32, BF16, F16)
    # P, S, D: none, one of everything, odd sizes, more than a block of columns.
    SHAPES = ((0, 4, 8), (1, 1, 1), (15, 2, 40), (17, 3, 16), (5, 4, 8), (33, 1, 257))
    LARGE_SHAPES = ((128, 16, 16), (0, 16, 32), (17, 16, 257), (300, 3, 40), (64, 16, 96))
    STRIDED_SHAPE = (12, 3, 10)
    GPU_SHAPE = (300, 16, 200)
    KERNELS = ("_patch_embed_fwd_kernel", "_one_hot_sums_kernel")
    LEAST_CASES = 21
    TWICE_DIFFERENTIABLE = (2,)  # bias
    LENGTH = 150  # of the position table
    V = 257
    function = staticmethod(patch_embed)

    def sample(self, shape, dtypes=F32, seed=0):  # type: ignore[no-untyped-def]
        """patches, weight, bias."""
        P, S, D = shape
        patches = torch.randint(0, self.V, (P, S), generator=torch.Generator().manual_seed(seed)).short()
        weight, bias = seeded(sum(shape) + seed, (S * self.V, D), (D,))
        return [patches, weight.to(dtypes), bias.to(dtypes)]

    def arguments(self, inputs):  # type: ignore[no-untyped-def]
        return (*inputs, *[None] * (5 - len(inputs)))

    @staticmethod
    def plain(patches: Tensor, *tensors: Tensor) -> Tensor:
        """Summed in float32 and rounded once."""
        wide = (t.to(torch.promote_types(t.dtype, F32)) if t.is_floating_point() else t for t in tensors)
        return patch_embed_reference(patches, *wide).to(tensors[0].dtype)

    @staticmethod
    def wrong_version(patches: Tensor, weight: Tensor, *tensors: Tensor) -> Tensor:
        return patch_embed(patches, weight.roll(1, 0), *tensors)

    def tolerance(self, backend, inputs, exact):  # type: ignore[no-untyped-def]
        return {"ulps": 2 if backend.name == "cpu" else 1}

    def draw_shape(self, stream: random.Random) -> tuple[int, int, int]:
        return stream.randrange(1, 40), stream.randrange(1, 18), stream.randrange(1, 70)

    def layouts(self) -> dict[str, list[Tensor]]:
        plain = self.sample((5, 2, 3), F64)
        shapes = {
            "no patch": (0, 2, 3),
            "no column": (3, 2, 0),
            "size 1": (1, 1, 1),
            "one byte a patch": (4, 1, 3),
            "seventeen bytes a patch": (2, 17, 2),
        }
        return {
            "plain": plain,
            "columns": [t.transpose(0, -1).contiguous().transpose(0, -1) for t in plain],
            "sliced": [t.repeat_interleave(2, -1)[..., ::2] for t in plain],
            "stride 0": [t[:1].expand(t.shape) for t in plain],
            "one token, one position": [torch.full_like(plain[0], self.V - 1), *plain[1:3], *self.one_position(plain)],
            **{name: self.sample(shape, F64) for name, shape in shapes.items()},
        }

    def one_position(self, sample: list[Tensor]) -> list[Tensor]:
        return []

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        patches, weight, bias = TestPatchEmbed().sample((3, 4, 8))
        return {
            "expected dtype int16, got int64": (patches.long(), weight, bias),
            r"expected shape \[P, S\], got \[3\]": (patches[:, 0], weight, bias),
            r"weight: expected shape \[3·V, D\]": (patches[:, :3].contiguous(), weight, bias),
            "bias: expected dtype float32, got float64": (patches, weight, bias.double()),
            r"bias: expected shape \[8\], got \[7\]": (patches, weight, bias[:7]),
            "expected device cpu": (patches, weight.to("meta"), bias),
            "expected a torch.Tensor, got list": ([[1, 2]], weight, bias),
            "expected tokens 0…256, got -1": (patches.clone().fill_(-1), weight, bias),
            "expected tokens 0…256, got 257…257": (patches.clone().fill_(257), weight, bias),
        }


class TestPatchEmbedOf128Symbols(TestPatchEmbed):
    test_compile_cases = None  # type: ignore[assignment]
    SHAPES = ((1, 1, 1), (15, 2, 40))
    LARGE_SHAPES = ((300, 3, 40), (64, 16, 96))
    V = 128

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        patches, weight, bias = self.sample((3, 4, 8))
        return {"expected tokens 0…127, got 128…128": (patches.clone().fill_(128), weight, bias)}


class TestPatchEmbedWithPositions(TestPatchEmbed):
    test_compile_cases = None  # type: ignore[assignment]

    def sample(self, shape, dtypes=F32, seed=0):  # type: ignore[no-untyped-def]
        """patches, weight, bias, position_weight, positions."""
        table = seeded(seed + 1, (self.LENGTH, shape[2]))[0].to(dtypes)
        positions = torch.randint(0, self.LENGTH, shape[:1], generator=torch.Generator().manual_seed(seed + 1))
        return [*super().sample(shape, dtypes, seed), table, positions]

    def one_position(self, sample: list[Tensor]) -> list[Tensor]:
        return [sample[3][:1].clone(), torch.zeros_like(sample[4])]

    def wrong_arguments(self):  # type: ignore[no-untyped-def]
        *tensors, table, positions = self.sample((3, 4, 8))
        wrong = {
            "position_weight: expected a tensor because positions is one, got None": (None, positions),
            "positions: expected a tensor because position_weight is one, got None": (table, None),
            "position_weight: expected dtype float32, got bfloat16": (table.bfloat16(), positions),
            r"position_weight: expected shape \[L, 8\], got \[150, 7\]": (table[:, :7], positions),
            "position_weight: expected device cpu": (table.to("meta"), positions),
            "positions: expected dtype int64, got int32": (table, positions.int()),
            r"positions: expected shape \[3\], got \[2\]": (table, positions[:2]),
            "positions: expected device cpu": (table, positions.to("meta")),
            "positions: expected 0…149, rows of position_weight, got -1…-1": (table, torch.full_like(positions, -1)),
            "positions: expected 0…149, rows of position_weight, got 150…150": (table, torch.full_like(positions, 150)),
        }
        return {message: (*tensors, *arguments) for message, arguments in wrong.items()}


sample = TestPatchEmbedWithPositions().sample


def test_positions_are_added_last() -> None:
    patches, weight, bias, table, positions = sample((300, 5, 40))
    together = patch_embed(patches, weight, bias, table, positions)
    assert torch.equal(together, patch_embed(patches, weight, bias) + table[positions])
    assert not torch.equal(together, patch_embed(patches, weight, bias) + table[positions.roll(1)])


def test_patches_are_independent(backend: Backend) -> None:
    arguments = TestPatchEmbedWithPositions().inputs(backend, (400, 16, 72))
    patches, weight, bias, table, positions = arguments
    together = patch_embed(*arguments)
    alone = [patch_embed(patches[i : i + 1], weight, bias, table, positions[i : i + 1]) for i in range(0, 400, 57)]
    assert torch.equal(together[::57], torch.cat(alone))
    weight[int(patches[0, 0])] += 1e-6  # the negative control: torch.equal sees a last bit
    assert not torch.equal(patch_embed(*arguments), together)


def test_the_cpu_adds_gradients_of_positions_in_order() -> None:
    (dy,) = seeded(1, (900, 96))
    positions = torch.randint(0, 13, (900,), generator=torch.Generator().manual_seed(1))
    want = torch.zeros(13, 96)
    for row, position in zip(dy, positions.tolist(), strict=True):
        want[position] += row
    for count in (1, 2, 3):
        with threads(count):
            for _ in range(30):
                assert torch.equal(torch.ops.bgpt_fast.patch_embed_position_backward(dy, positions, 13), want)


def test_nan_stays_in_its_rows_on_the_cpu() -> None:
    arguments = sample((9, 3, 8))
    patches, weight, bias, table, positions = arguments
    dy = torch.ones(9, 8)
    dy[4, 2] = torch.nan
    dweight, _, dtable = results(patch_embed, arguments, [dy]).gradients
    assert dweight[257 * torch.arange(3) + patches[4], 2].isnan().all()
    assert dweight.isnan().sum() == 3
    assert dtable[positions[4], 2].isnan()
    assert dtable.isnan().sum() == 1
    table[positions[4], 5] = torch.inf
    assert torch.equal(patch_embed(patches, weight, bias, table, positions).isinf().any(1), positions == positions[4])


def test_the_last_token_of_a_slot_and_the_first_of_the_next(backend: Backend) -> None:
    patches = torch.tensor([[256, 0, 256], [0, 256, 0]], dtype=torch.int16, device=backend.device)
    dy = torch.tensor([[1.0], [2.0]], device=backend.device)
    dweight = torch.ops.bgpt_fast.patch_embed_backward(dy, patches, 257).view(3, 257)
    assert dweight[:, [0, 256]].tolist() == [[2, 1], [1, 2], [2, 1]]
    assert not dweight[:, 1:256].any()


def test_an_expanded_bias(backend: Backend) -> None:
    patches, weight, _ = TestPatchEmbed().inputs(backend, (12, 6, 8))
    bias = torch.tensor([0.5], device=backend.device).expand(8)
    assert equal([patch_embed(patches, weight, bias)], [patch_embed(patches, weight, bias.contiguous())])
    check_errors(patch_embed, {"patch_embed: weight: expected": (patches, weight[1:], bias)})


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_gradients_are_bit_equal_with_any_number_of_threads(count: int) -> None:
    arguments = sample((900, 16, 96))
    with threads(1):
        first = results(patch_embed, arguments).all
    with threads(count):
        for _ in range(10):
            assert equal(results(patch_embed, arguments).all, first)
