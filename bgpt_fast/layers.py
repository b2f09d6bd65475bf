"""The GPT-2 layers shared by both decoders.

Shape letters: N rows (patches or bytes), D width, H heads, d = D / H.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bgpt_fast.config import BGPTConfig
from bgpt_fast.kernels.bias_gelu.op import bias_gelu, bias_gelu_backward
from bgpt_fast.kernels.common.register import is_transformed
from bgpt_fast.kernels.layer_norm.op import add_layer_norm, layer_norm
from bgpt_fast.kernels.matrix_product.op import matrix_product

INIT_STD = 0.02

Attend = Callable[[Tensor, "Linear", float], Tensor]
"""Attention over rows: (x [N, D], projection to q, k, v, dropout rate) → [N, D]; defines which rows attend to which."""


def byte_embeddings(config: BGPTConfig) -> Tensor:
    """Initial embeddings of the V tokens, float32 [V, D], according to `config.byte_init`."""
    table = torch.empty(config.vocab_size, config.hidden_size).normal_(std=config.byte_init_std)
    if config.byte_init == "numeric":
        features = _numeric_features()
        projection = torch.empty(features.shape[1], config.hidden_size).normal_(std=config.byte_init_std)
        # 0.3² + 0.95² ≈ 1 preserves the standard deviation; the first term makes bytes with equal features differ.
        table[:256] = 0.3 * table[:256] + 0.95 * features @ projection
    return table


def position_embeddings(config: BGPTConfig, positions: int) -> Tensor:
    """Initial position embeddings, float32 [positions, D], according to `config.position_init`."""
    if config.position_init == "normal":
        return torch.empty(positions, config.hidden_size).normal_(std=config.position_init_std)
    # Periods 2, 2·2^(1/8), …: the table also has the frequencies of half and of twice a position.
    pairs = -(-config.hidden_size // 2)
    frequencies = math.pi * 2.0 ** (-torch.arange(pairs) / 8)
    angles = torch.arange(float(positions))[:, None] * frequencies
    table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, : config.hidden_size]
    return table * (config.position_init_std * math.sqrt(2))


def _numeric_features() -> Tensor:
    """Features of each byte value, float32 [256, 31]: bits, phases of seven periods, magnitude, soft thresholds."""
    value = torch.arange(256.0)[:, None]
    bits = ((value.int() >> torch.arange(8)) & 1) * 2.0 - 1.0
    phases = 2 * math.pi * value * 2.0 ** torch.arange(7) / 256
    magnitude = (value - 127.5) / 74
    thresholds = torch.sigmoid((value - torch.arange(16, 256, 32)) / 8) * 2 - 1
    return F.normalize(torch.cat([bits, phases.cos(), phases.sin(), magnitude, thresholds], dim=1))


class LayerNorm(nn.LayerNorm):
    """LayerNorm with eps 1e-5, computed in float32 for any dtype."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps=self.eps)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns LayerNorm(x) and x, both [N, D]; their gradients are added in LayerNorm's backward pass."""
        y, residual, _, _ = _NormAndResidual.apply(x, self.weight, self.bias, self.eps)
        return y, residual

    def add(self, branch: Tensor, residual: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """Returns LayerNorm(y) and y, both [N, D], with y = residual + dropout(branch)."""
        seed = _dropout_seed(dropout)
        return add_layer_norm(branch, residual, self.weight, self.bias, eps=self.eps, dropout=dropout, seed=seed)

    def add_projected(self, x: Tensor, layer: Linear, residual: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
        """The same with branch = layer(x), whose bias has its gradient from LayerNorm's backward pass."""
        branch = Linear(layer.weight, layer.bias.detach())(x)
        inputs = (branch, residual, self.weight, self.bias, layer.bias)
        y, total, _, _ = _AddAndNorm.apply(*inputs, self.eps, dropout, _dropout_seed(dropout))
        return y, total


def _dropout_seed(dropout: float) -> int:
    """A seed of the counter-based random stream, from the CPU's generator so that no GPU is waited for."""
    return int(torch.randint(2**62, (), device="cpu")) if dropout else 0


class _Function(torch.autograd.Function):
    """A function whose `apply` does not look up the signature of `forward` in each call, which takes as long as several
    launches."""

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        if is_transformed():
            return super().apply(*arguments)
        return super(torch.autograd.Function, cls).apply(*arguments)  # type: ignore[misc]


class _NormAndResidual(_Function):
    """LayerNorm(x), x, and LayerNorm's mean and rstd."""

    @staticmethod
    def forward(x, weight, bias, eps):  # type: ignore[no-untyped-def]
        y, mean, rstd = torch.ops.bgpt_fast.layer_norm(x, weight, bias, eps, x.dtype)
        return y, x.view_as(x), mean, rstd

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, weight, _, _ = inputs
        _, _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, rstd)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dresidual, _dmean, _drstd):  # type: ignore[no-untyped-def]
        x, weight, mean, rstd = ctx.saved_tensors
        if dy is None:
            return dresidual, None, None, None
        backward = torch.ops.bgpt_fast.add_layer_norm_backward
        _, dx, dweight, dbias, _ = backward(dy, dresidual, x, weight, mean, rstd, x.dtype, 0.0, 0, False)
        return dx, dweight, dbias, None


class _AddAndNorm(_Function):
    """As `add_layer_norm`, whose backward pass also gives the gradient of a bias that the branch contains."""

    @staticmethod
    def forward(branch, residual, weight, bias, branch_bias, eps, dropout, seed):  # type: ignore[no-untyped-def]
        return torch.ops.bgpt_fast.add_layer_norm(branch, residual, weight, bias, eps, dropout, seed)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        branch, _, weight, _, _, _, ctx.dropout, ctx.seed = inputs
        _, total, mean, rstd = output
        ctx.dtype = branch.dtype
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, mean, rstd)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, dtotal, _dmean, _drstd):  # type: ignore[no-untyped-def]
        total, weight, mean, rstd = ctx.saved_tensors
        dy = torch.zeros(total.shape, dtype=ctx.dtype, device=total.device) if dy is None else dy
        arguments = (dy, dtotal, total, weight, mean, rstd, ctx.dtype, ctx.dropout, ctx.seed, True)
        dbranch, dresidual, *gradients = torch.ops.bgpt_fast.add_layer_norm_backward(*arguments)
        same = ctx.dropout == 0.0 and ctx.dtype == total.dtype
        return dresidual if same else dbranch, dresidual, *gradients, None, None, None


class Linear(NamedTuple):
    """A linear layer y = x W + b: weight [in, out] and bias [out], both in the compute dtype."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return matrix_product(x, self.weight, self.bias)


class Conv1D(nn.Module):
    """The parameters of GPT-2's linear layer; the weight is [in, out] as in the released checkpoints."""

    def __init__(self, inputs: int, outputs: int, std: float = INIT_STD) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=std))
        self.bias = nn.Parameter(torch.zeros(outputs))


def linears(layers: Sequence[Conv1D], dtype: torch.dtype) -> list[Linear]:
    """The layers in a compute dtype, converted together: on a GPU with a kernel or two, and as many backward."""
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    if any(parameter.dtype != dtype for parameter in parameters):
        parameters = list(_Cast.apply(dtype, *parameters))
    return [Linear(*pair) for pair in zip(parameters[::2], parameters[1::2], strict=True)]


class _Cast(_Function):
    """Tensors of one dtype in another."""

    @staticmethod
    def forward(dtype, *tensors):  # type: ignore[no-untyped-def]
        return _converted(tensors, dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        ctx.dtype = inputs[1].dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        there = iter(_converted([gradient for gradient in gradients if gradient is not None], ctx.dtype))
        return None, *(None if gradient is None else next(there) for gradient in gradients)


def _converted(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)


class Attention(nn.Module):
    """Multi-head self-attention; the caller's `attend` defines which rows attend to which.

    `forward` takes the layers' parameters in the compute dtype, as `linears` returns them.
    """

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = config.dropout
        self.c_attn = Conv1D(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = Conv1D(config.hidden_size, config.hidden_size, INIT_STD / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor, attend: Attend, c_attn: Linear) -> Tensor:
        """The heads' output, [N, D], before the projection `c_proj`."""
        return attend(x, c_attn, self.dropout if self.training else 0.0)


def _selected(x: Tensor, rows: Tensor | None) -> Tensor:
    # Not x[rows], whose gradient a GPU computes by sorting the rows.
    return x if rows is None else x.index_select(0, rows)


class MLP(nn.Module):
    """Linear, tanh GELU, linear; `forward` takes the parameters as in `Attention`."""

    def __init__(self, config: BGPTConfig, num_layers: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.hidden_size, 4 * config.hidden_size)
        self.c_proj = Conv1D(4 * config.hidden_size, config.hidden_size, INIT_STD / math.sqrt(2 * num_layers))

    def forward(self, x: Tensor, c_fc: Linear, c_proj: Linear) -> Tensor:
        y, _ = _MLP.apply(x, *c_fc, *c_proj)
        return y


class _MLP(_Function):
    """gelu(x W + b) V + c; saves x and x W and recomputes the GELU in backward, which is cheaper than storing it."""

    @staticmethod
    def forward(x, weight, bias, out_weight, out_bias):  # type: ignore[no-untyped-def]
        hidden = matrix_product(x, weight)
        return matrix_product(bias_gelu(hidden, bias), out_weight, out_bias), hidden

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, weight, bias, out_weight, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # no tensor of zeros for x W, the largest of the layer
        ctx.save_for_backward(x, weight, bias, out_weight, output[1])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy, _):  # type: ignore[no-untyped-def]
        if dy is None:
            return None, None, None, None, None
        x, weight, bias, out_weight, hidden = ctx.saved_tensors
        dhidden, dbias, activated = bias_gelu_backward(matrix_product(dy, out_weight.t()), hidden, bias)
        dout_weight = matrix_product(activated.t(), dy)
        del activated  # as large as all other gradients of the layer
        dx, dweight = matrix_product(dhidden, weight.t()), matrix_product(x.t(), dhidden)
        return dx, dweight, dbias, dout_weight, dy.sum(0)


class Block(nn.Module):
    """A pre-norm GPT-2 layer that leaves its last residual addition to the next layer, which fuses it with a LayerNorm.

    Source: `flash_attn.modules.block.Block` of Dao-AILab/flash-attention.
    """

    def __init__(self, config: BGPTConfig, num_layers: int, heads: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.ln_1 = LayerNorm(config.hidden_size)
        self.attn = Attention(config, num_layers, heads)
        self.ln_2 = LayerNorm(config.hidden_size)
        self.mlp = MLP(config, num_layers)

    def forward(
        self, hidden: Tensor, residual: Tensor | None, attend: Attend, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            hidden: [N, D], the previous layer's output, not yet added to the residual; the embeddings in the first.
            residual: [N, D]; None for the first layer.
            attend: see `Attend`.
            rows: int64 [R], the rows whose output is needed; None means all.

        Returns:
            The MLP's output, and the residual that it has to be added to, both [N, D] or [R, D].
        """
        dropout = self.dropout if self.training else 0.0
        layers = self.attn.c_attn, self.attn.c_proj, self.mlp.c_fc, self.mlp.c_proj
        c_attn, attn_proj, c_fc, mlp_proj = linears(layers, hidden.dtype)
        if residual is None:
            hidden, residual = self.ln_1.split(hidden)
        else:
            hidden, residual = self.ln_1.add(hidden, residual, dropout)
        heads = _selected(self.attn(hidden, attend, c_attn), rows)
        hidden, residual = self.ln_2.add_projected(heads, attn_proj, _selected(residual, rows), dropout)
        return self.mlp(hidden, c_fc, mlp_proj), residual


class Transformer(nn.Module):
    """GPT-2's embeddings, layers and final LayerNorm, under the released names.

    Args:
        vocab_size: rows of `wte`.
        positions: rows of `wpe`.
        num_layers, heads: numbers of layers and of attention heads.

    Attributes:
        activation_checkpointing: whether layers save only their inputs and are recomputed in the backward pass.
    """

    def __init__(self, config: BGPTConfig, vocab_size: int, positions: int, num_layers: int, heads: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.activation_checkpointing = False
        self.wte = nn.Embedding(vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(positions, config.hidden_size)
        if vocab_size == config.vocab_size:
            self.wte.weight = nn.Parameter(byte_embeddings(config))
        else:
            nn.init.normal_(self.wte.weight, std=INIT_STD)
        self.wpe.weight = nn.Parameter(position_embeddings(config, positions))
        self.h = nn.ModuleList(Block(config, num_layers, heads) for _ in range(num_layers))
        self.ln_f = LayerNorm(config.hidden_size)

    def forward(self, embeddings: Tensor, attend: Attend, rows: Tensor | None = None) -> Tensor:
        """Embeddings [N, D], positions already added → features [N, D], both in the compute dtype.

        With `rows`, int64 [R], only their features, [R, D]; the last layer then computes no others after its attention.
        """
        hidden, residual = F.dropout(embeddings, self.dropout, self.training), None
        for block in self.h:
            needed = rows if block is self.h[-1] else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                hidden, residual = checkpoint(block, hidden, residual, attend, needed, use_reentrant=False)
            else:
                hidden, residual = block(hidden, residual, attend, needed)
        assert residual is not None, "a decoder has at least one layer"
        return self.ln_f.add(hidden, residual, self.dropout if self.training else 0.0)[0]


def compute_dtype(x: Tensor) -> torch.dtype:
    """The autocast dtype on x's device, or x's own dtype without autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
