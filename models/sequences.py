"""Nets for tokens and sound, small: an LSTM, BERT, ViT (LayerNorm), Llama (RMSNorm), DiT (AdaLN), wav2vec (GroupNorm).

Each is an `Entry`, which makes a module with random statistics that knows its example inputs and dynamic dimensions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.entry import Entry

_TOKENS = ({0: "batch", 1: "length"},)


class NormLSTMCell(nn.Module):
    """LSTM cell with LayerNorm on both projections and on the cell state (Ba, Kiros and Hinton, 2016)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, 4 * hidden, bias=False)
        self.hidden = nn.Linear(hidden, 4 * hidden, bias=False)
        self.norms = nn.ModuleList((nn.LayerNorm(4 * hidden), nn.LayerNorm(4 * hidden), nn.LayerNorm(hidden)))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        gates = self.norms[0](self.input(x)) + self.norms[1](self.hidden(h))
        enter, forget, cell, leave = gates.chunk(4, -1)
        c = torch.sigmoid(forget) * c + torch.sigmoid(enter) * torch.tanh(cell)
        return torch.sigmoid(leave) * torch.tanh(self.norms[2](c)), c


class NormLSTM(nn.Module):
    """A few steps of the cell; x (N, T, inputs)."""

    def __init__(self, inputs: int = 6, hidden: int = 8) -> None:
        super().__init__()
        self.cell = NormLSTMCell(inputs, hidden)
        self.size = hidden

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.size)
        steps = []
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
            steps.append(h)
        return torch.stack(steps, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ/√d + mask)·v, of (N, heads, T, d)."""
    weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    result: Tensor = torch.softmax(weights if mask is None else weights + mask, -1) @ v
    return result


class Attention(nn.Module):
    """Attention of (N, T, C) to itself in heads."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(x).chunk(3, -1))
        y: Tensor = self.output(attend(q, k, v).transpose(1, 2).flatten(2))
        return y


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class PostNormBlock(nn.Module):
    """BERT's block: norm(x + attention(x)), norm(x + mlp(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), _feed_forward(width)
        self.first, self.second = nn.LayerNorm(width, eps=1e-12), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x + self.attention(x))
        y: Tensor = self.second(x + self.mlp(x))
        return y


class Bert(nn.Module):
    """BERT's encoder (Devlin et al., 2018): embeddings with positions, blocks with the norm behind the sum."""

    def __init__(self, words: int = 64, width: int = 32, heads: int = 4, depth: int = 2, positions: int = 64) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.Sequential(*(PostNormBlock(width, heads) for _ in range(depth)))

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        y: Tensor = self.blocks(self.norm(self.words(tokens) + self.positions(places)))
        return y


class PreNormBlock(nn.Module):
    """ViT's block: x + attention(norm(x)), x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), _feed_forward(width)
        self.first, self.second = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        y: Tensor = x + self.mlp(self.second(x))
        return y


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al., 2020): patches, a class token, blocks with the norm in front."""

    def __init__(
        self, width: int = 32, heads: int = 4, depth: int = 2, image: int = 32, patch: int = 8, classes: int = 10
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, heads) for _ in range(depth)))
        self.head = nn.Sequential(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, classes))

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        y: Tensor = self.head(self.blocks(x)[:, 0])
        return y


def rotated(x: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021) for (N, heads, T, d)."""
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=x.dtype, device=x.device) / half)
    angles = torch.arange(x.shape[2], dtype=x.dtype, device=x.device)[:, None] * rates
    cos, sin = torch.cos(angles).repeat(1, 2), torch.sin(angles).repeat(1, 2)
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


class LlamaBlock(nn.Module):
    """Llama's block: RMSNorm in front, rotary positions, a causal mask, SwiGLU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.inputs, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate, self.up = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.inputs(self.first(x)).chunk(3, -1)
        )
        mask = torch.full((x.shape[1], x.shape[1]), -1e4, dtype=x.dtype, device=x.device).triu(1)
        x = x + self.output(attend(rotated(q), rotated(k), v, mask).transpose(1, 2).flatten(2))
        y = self.second(x)
        result: Tensor = x + self.down(functional.silu(self.gate(y)) * self.up(y))
        return result


class Llama(nn.Module):
    """Llama (Touvron et al., 2023) in small, with tied embeddings."""

    def __init__(self, words: int = 64, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.Sequential(*(LlamaBlock(width, heads) for _ in range(depth)))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(self.blocks(self.words(tokens))))
        return y


class DiTBlock(nn.Module):
    """DiT's block: LayerNorm without γ and β, scale, shift and gate of a condition (AdaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(width, heads), _feed_forward(width)
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(condition).unsqueeze(1).chunk(6, -1)
        x = x + gate * self.attention(self.norm(x) * (1 + scale) + shift)
        y: Tensor = x + gate_mlp * self.mlp(self.norm(x) * (1 + scale_mlp) + shift_mlp)
        return y


class DiT(nn.Module):
    """Diffusion transformer (Peebles and Xie, 2022) on tokens and the embedding of a condition."""

    def __init__(self, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(condition).unsqueeze(1).chunk(2, -1)
        y: Tensor = self.head(self.norm(x) * (1 + scale) + shift)
        return y


class SpeechFeatures(nn.Module):
    """wav2vec 2.0's front end (Baevski et al., 2020): a GroupNorm over time behind the first convolution, then GELU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, width, 10, 5, bias=False)
        self.norm = nn.GroupNorm(width, width)
        self.rest = nn.Sequential(
            *(layer for kernel in (3, 3, 2) for layer in (nn.Conv1d(width, width, kernel, 2, bias=False), nn.GELU()))
        )
        self.last = nn.LayerNorm(width)

    def forward(self, sound: Tensor) -> Tensor:
        y = self.rest(functional.gelu(self.norm(self.first(sound[:, None]))))
        result: Tensor = self.last(y.transpose(1, 2))
        return result


lstm = Entry("lstm-layer-norm", NormLSTM, ((2, 5, 6),))
bert = Entry("bert-blocks", Bert, ((2, 9),), _TOKENS, tokens={0: 64})
vit = Entry("vit-blocks", ViT, ((2, 3, 32, 32),))
llama = Entry("llama-blocks", Llama, ((2, 9),), _TOKENS, tokens={0: 64})
dit = Entry("dit-blocks", DiT, ((2, 9, 32), (2, 32)), ({0: "batch", 1: "length"}, {0: "batch"}))
wav2vec = Entry("wav2vec-features", SpeechFeatures, ((2, 800),), _TOKENS)

ENTRIES: tuple[Entry, ...] = (lstm, bert, vit, llama, dit, wav2vec)
"""All of them."""
