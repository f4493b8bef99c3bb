"""Small networks of the kinds that people have: transformers, recurrent nets, U-Nets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """A decoder-only transformer whose input is the embedding."""

    def __init__(self, width: int = 8, length: int = 5) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 7)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.position = nn.Parameter(torch.randn(length, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        x = x + self.position
        q, k, v = self.qkv(self.norm(x)).split(width, dim=2)
        q, k, v = (t.view(batch, length, 2, width // 2).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(y.transpose(1, 2).reshape(batch, length, width))
        x = x + self.mlp(self.norm(x))
        return self.out(x[:, -1])


class ByHand(nn.Module):
    """Attention in products, with a mask that hides what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / math.sqrt(6)
        later = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), 1)
        return scores.masked_fill(later, -1e9).softmax(-1) @ self.v(x)


class SelfAttention(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Weights(nn.Module):
    """Attention that also returns its weights, which goes another way through torch."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention(x, x, x)


class Pair(nn.Module):
    """A transformer decoder over a sequence and a memory, both made from the input."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 8, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1] - 1
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=x.dtype)
        return self.decoder(x[:, 1:], x, tgt_mask=mask, tgt_is_causal=True)


class Masked(nn.Module):
    """An encoder with a mask of what comes later and one of what is padding."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        padding = torch.zeros(x.shape[0], length, dtype=torch.bool) | (torch.arange(length) == 3)
        return self.encoder(x, mask=later, src_key_padding_mask=padding)


class Hidden(nn.Module):
    """Attention whose hidden scores are −∞: by hand, and by a layer that returns its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        x = scores.masked_fill(later, float("-inf")).softmax(-1) @ x
        mask = torch.triu(torch.full((length, length), float("-inf"), dtype=x.dtype), 1)
        padding = torch.zeros(x.shape[0], length, dtype=torch.bool) | (torch.arange(length) == 3)
        padding = torch.zeros_like(padding, dtype=x.dtype).masked_fill_(padding, float("-inf"))
        found, _ = self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding)
        return found


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(2, 6, 2, 2)
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)
        self.tokens = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
        self.channels = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.second(x))
        return self.out(x.mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.norm, self.out = nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.down(x))
        low = F.relu(self.deep(F.max_pool2d(high, 2)))
        up = F.interpolate(self.up(low), size=high.shape[2:], mode="bilinear")
        return self.out(self.norm(torch.cat([high, up], 1)))


class Recurrent(nn.Module):
    """A recurrent layer, its output and its last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = kind(3, 4, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        output, last = self.layer(x)
        state = last[0] if isinstance(last, tuple) else last
        return output.sum(1) + state.sum(0).repeat(1, output.shape[2] // state.shape[2])


class Cells(nn.Module):
    """Cells called in a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTMCell(3, 4), nn.GRUCell(4, 4), nn.RNNCell(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden, cell = x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)
        for step in range(3):
            hidden, cell = self.lstm(x[:, step], (hidden, cell))
        return self.rnn(self.gru(hidden))


class Windows(nn.Module):
    """Attention within shifted windows, as Swin has it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, high, wide, width = x.shape
        x = torch.roll(x, (-1, -1), (1, 2))
        x = x.view(batch, high // 2, 2, wide // 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(-1, 4, width)
        q, k, v = self.qkv(x).reshape(x.shape[0], 4, 3, 2, 2).permute(2, 0, 3, 1, 4)
        y = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).reshape(-1, 4, width))
        y = y.view(batch, high // 2, wide // 2, 2, 2, width).permute(0, 1, 3, 2, 4, 5)
        return torch.roll(y.reshape(batch, high, wide, width), (1, 1), (1, 2))


class SqueezeExcitation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return (x * scale).mean((2, 3))


def encoder(norm_first: bool, activation: str = "relu") -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        8, 2, 8, batch_first=True, norm_first=norm_first, activation=activation
    )
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "decoder": (Decoder, (5, 8)),
    "attention by hand": (ByHand, (4, 6)),
    "attention": (SelfAttention, (4, 8)),
    "attention weights": (Weights, (4, 8)),
    "encoder, norm last": (lambda: encoder(False), (4, 8)),
    "encoder, norm first": (lambda: encoder(True, "gelu"), (4, 8)),
    "transformer decoder": (Pair, (4, 8)),
    "encoder, masked": (lambda: Masked(True), (4, 8)),
    "hidden scores": (Hidden, (4, 8)),
    "mixer": (Mixer, (2, 4, 4)),
    "u-net": (UNet, (1, 4, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM, batch_first=True), (3, 3)),
    "lstm, two ways, two layers": (
        lambda: Recurrent(nn.LSTM, batch_first=True, bidirectional=True, num_layers=2),
        (3, 3),
    ),
    "lstm, projected": (lambda: Recurrent(nn.LSTM, batch_first=True, proj_size=2), (3, 3)),
    "gru": (lambda: Recurrent(nn.GRU, batch_first=True, bidirectional=True), (3, 3)),
    "rnn": (lambda: Recurrent(nn.RNN, batch_first=True, nonlinearity="relu", bias=False), (3, 3)),
    "cells": (Cells, (3, 3)),
    "windows": (Windows, (4, 4, 4)),
    "squeeze and excitation": (SqueezeExcitation, (2, 4, 4)),
}
