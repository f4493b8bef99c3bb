"""Small networks as people write them: plain structure, odd structure, several in- and outputs."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize


class Residual(nn.Module):
    """A CIFAR-style ResNet: option A shortcuts, which subsample and pad channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, s, 1, bias=False) for a, b, s in ((4, 4, 1), (4, 8, 2), (8, 8, 1))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (4, 4, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.stem(x)))
        x = F.relu(self.norms[1](self.convs[0](x)) + x)
        y = self.norms[3](self.convs[2](F.relu(self.norms[2](self.convs[1](x)))))
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.head(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))


class PreActivation(nn.Module):
    """Pre-activation blocks from a list of strings, as a configuration file gives them."""

    def __init__(self, layout: str = "cncpc") -> None:
        super().__init__()
        makers: dict[str, Callable[[], nn.Module]] = {
            "c": lambda: nn.Conv2d(3, 3, 3, padding=1),
            "n": lambda: nn.GroupNorm(3, 3),
            "p": lambda: nn.AvgPool2d(2),
        }
        self.layers = nn.ModuleDict({f"{i}_{k}": makers[k]() for i, k in enumerate(layout)})

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.layers.items():
            x = x + F.relu(layer(x)) if name.endswith("c") else layer(x)
        return x.amax(dim=(-2, -1))


class DeepUNet(nn.Module):
    """Two levels, skips in a list, odd sizes cropped to fit."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)])
        self.bottom = nn.Sequential(nn.Conv2d(3, 3, 1), nn.LeakyReLU(0.1))
        self.up = nn.ModuleList([nn.ConvTranspose2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 2, 3, 2, 1)])
        self.merge = nn.ModuleList([nn.Conv2d(6, 3, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = layer(x).relu()
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x, skip = up(x), skips.pop()
            skip = skip[..., : x.shape[-2], : x.shape[-1]]
            x = merge(torch.cat((x, skip), dim=1)).relu()
        return x


class GPT(nn.Module):
    """Pre-norm decoder blocks with tied output weights, over embeddings."""

    def __init__(self, vocabulary: int = 6, width: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(8, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "ln1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "ln2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 2 * width),
                    "down": nn.Linear(2 * width, width),
                }
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("mask", torch.tril(torch.ones(8, 8))[None])

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(1)
        x = x + self.positions(torch.arange(length, device=x.device))
        for block in self.blocks:
            q, k, v = block["qkv"](block["ln1"](x)).chunk(3, dim=-1)
            scores = q @ k.mT / math.sqrt(k.size(-1))
            scores = scores.masked_fill(self.mask[:, :length, :length] == 0, float("-inf"))
            x = x + block["out"](F.softmax(scores, dim=-1) @ v)
            x = x + block["down"](F.gelu(block["up"](block["ln2"](x)), approximate="tanh"))
        return self.head(self.norm(x))


class SmallViT(nn.Module):
    """Patches, a class token, learned positions, torch's own encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 4, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.position = nn.Parameter(0.1 * torch.randn(1, 5, 4))
        layer = nn.TransformerEncoderLayer(4, 2, 8, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(4), enable_nested_tensor=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.encoder(x)[:, 0])


class VAE(nn.Module):
    """The mean path in evaluation mode; a dataclass of outputs would sample in training."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ELU())
        self.mean, self.log_variance = nn.Linear(8, 3), nn.Linear(8, 3)
        self.decode = nn.Sequential(
            nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 16), nn.Unflatten(1, (1, 4, 4)), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.encode(x)
        mean, log_variance = self.mean(h), self.log_variance(h).clamp(-4, 4)
        z = mean
        if self.training:
            z = z + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).sum(dim=1)
        return {"image": self.decode(z), "kl": kl}


class LSTMClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        output, (hidden, _) = self.lstm(x)
        return self.head(output.mean(1) + hidden[-1])


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TCN(nn.Module):
    """Dilated causal convolutions with weight normalisation and residual paths."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(((2, 3), (3, 3))):
            conv = nn.Conv1d(a, b, 2, padding=2**i, dilation=2**i)
            layers += [parametrizations.weight_norm(conv), Chomp(2**i), nn.ReLU(), nn.Dropout(0.2)]
        self.net, self.skip = nn.Sequential(*layers), nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + self.skip(x))[:, :, -1]


class PointNet(nn.Module):
    """Shared layers, the maximum over points, and a learned alignment of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.align = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU())
        self.turn = nn.Linear(4, 9)
        self.features = nn.Sequential(nn.Conv1d(3, 5, 1), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, points: Tensor) -> Tensor:
        batch = points.size(0)
        pooled = torch.max(self.align(points), 2, keepdim=True)[0].view(-1, 4)
        turn = self.turn(pooled) + torch.eye(3, dtype=points.dtype).flatten().unsqueeze(0)
        points = torch.bmm(points.transpose(2, 1), turn.view(batch, 3, 3)).transpose(2, 1)
        return self.head(self.features(points).max(dim=2).values)


class DeepSets(nn.Module):
    """Sum over a set, with a mask as a plain second input."""

    def __init__(self) -> None:
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4))
        self.rho = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.phi(x) * mask.unsqueeze(-1)
        return self.rho(h.sum(1) / mask.sum(1, keepdim=True).clamp(min=1))


class GraphConvolution(nn.Module):
    """A fixed adjacency, once as a matrix and once as a list of edges."""

    def __init__(self) -> None:
        super().__init__()
        edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
        adjacency = torch.eye(4)
        adjacency[edges[0], edges[1]] = 1.0
        degree = adjacency.sum(1).rsqrt()
        self.register_buffer("adjacency", degree[:, None] * adjacency * degree)
        self.register_buffer("edges", edges)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.einsum("ij,bjk->bik", self.adjacency, self.first(x)))
        messages = self.second(x)[:, self.edges[0]]
        return torch.zeros_like(messages[:, :4]).index_add(1, self.edges[1], messages)


class KAN(nn.Module):
    """Kolmogorov-Arnold layers: SiLU plus radial functions on a fixed grid, per edge."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-2, 2, 5))
        self.base = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 2)])
        self.spline = nn.ParameterList(
            [nn.Parameter(0.3 * torch.randn(4, 3, 5)), nn.Parameter(0.3 * torch.randn(2, 4, 5))]
        )

    def forward(self, x: Tensor) -> Tensor:
        for base, spline in zip(self.base, self.spline, strict=True):
            basis = torch.exp(-(((x.unsqueeze(-1) - self.grid) / 1.0) ** 2))
            x = base(F.silu(x)) + torch.einsum("bik,oik->bo", basis, spline)
        return x


class HatSpline(nn.Module):
    """Piecewise linear splines from clamped distances."""

    def __init__(self) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.linspace(-1, 1, 4), requires_grad=False)
        self.weight = nn.Parameter(torch.randn(3, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        hats = (1 - 1.5 * (x[..., None] - self.knots).abs()).clamp_min(0)
        return torch.tensordot(hats, self.weight, dims=2)


class Siren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 5), nn.Linear(5, 1)])

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.layers
        for layer in inner:
            x = torch.sin(3.0 * layer(x))
        return last(x).squeeze(-1)


class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(5, 3))
        self.log_width = nn.Parameter(torch.zeros(5))
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        distance = (x.unsqueeze(1) - self.centers.unsqueeze(0)).pow(2).sum(-1)
        return self.head(torch.exp(-distance * self.log_width.exp()))


class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.gate = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for value, gate in zip(self.value, self.gate, strict=True):
            share = torch.sigmoid(gate(x))
            x = share * F.relu(value(x)) + (1 - share) * x
        return x


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, channels last, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.LayerNorm(4, eps=1e-6)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.gamma = nn.Parameter(0.1 * torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class Capsules(nn.Module):
    """Squashed vectors and two rounds of routing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(3, 2, 4, 3))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return square / (1 + square) * x / torch.sqrt(square + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squash(x.view(-1, 3, 4))
        votes = torch.einsum("bic,iocd->biod", x, self.weight)
        logits = torch.zeros_like(votes[..., :1])
        result = votes.mean(1)
        for _ in range(2):
            share = logits.softmax(2)
            result = self.squash((share * votes).sum(1))
            logits = logits + (votes * result.unsqueeze(1)).sum(-1, keepdim=True)
        return result.norm(dim=-1)


class Coupling(nn.Module):
    """A normalising flow of affine couplings with alternating masks; value and log-determinant."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(x.shape[0])
        for i, net in enumerate(self.nets):
            left, right = x.split(2, dim=1)
            if i % 2:
                left, right = right, left
            scale, shift = net(left).chunk(2, 1)
            scale = torch.tanh(scale)
            right = right * scale.exp() + shift
            log_det = log_det + scale.sum(1)
            x = torch.cat((right, left) if i % 2 else (left, right), 1)
        return x, log_det


class NeuralODE(nn.Module):
    """Fixed Euler steps of a network that also reads the time."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.field = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 3))
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        step = 1.0 / self.steps
        for i in range(self.steps):
            time = torch.full_like(x[:, :1], i * step)
            x = x + step * self.field(torch.cat([x, time], dim=-1))
        return x


class Pendulum(nn.Module):
    """A policy in a loop with the dynamics of a pendulum; the trajectory is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1), nn.Hardtanh(-2, 2))

    def forward(self, state: Tensor) -> Tensor:
        seen = []
        for _ in range(3):
            angle, speed = state[..., 0], state[..., 1]
            observed = torch.stack((angle.cos(), angle.sin(), speed), dim=-1)
            torque = self.policy(observed).squeeze(-1)
            speed = speed + 0.05 * (15.0 * torch.sin(angle) + 3.0 * torque)
            state = torch.stack((angle + 0.05 * speed, speed), dim=-1)
            seen.append(state)
        return torch.stack(seen, dim=1)


class Rocket(nn.Module):
    """Division by a bounded mass, products of states, square roots."""

    def __init__(self) -> None:
        super().__init__()
        self.thrust = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Softplus())

    def forward(self, state: Tensor) -> Tensor:
        height, speed, mass = torch.unbind(state, dim=1)
        push = self.thrust(state)[:, 0]
        mass = torch.clamp(mass.abs() - 0.1 * push, min=0.5)
        drag = 0.1 * speed * speed.abs()
        speed = speed + 0.1 * ((push - drag) / mass - 9.8 / (1 + height.abs()).sqrt())
        return torch.stack([height + 0.1 * speed, speed, mass], 1)


class Quantiles(nn.Module):
    """Ordered quantiles by a running sum of positive steps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.GELU())
        self.first, self.steps = nn.Linear(6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        steps = F.softplus(self.steps(h)).cumsum(dim=1)
        return torch.cat([self.first(h), self.first(h) + steps], dim=1)


Heads = namedtuple("Heads", ["logits", "value"])


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(one=nn.Linear(4, 5), two=nn.Tanh()))
        self.actor, self.critic = nn.Linear(5, 3), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Heads:
        h = self.body(x)
        return Heads(F.log_softmax(self.actor(h), dim=-1), self.critic(h).squeeze(1))


@dataclass
class Detection:
    scores: Tensor
    boxes: Tensor


torch.utils._pytree.register_dataclass(Detection)


class Detector(nn.Module):
    """A dataclass of outputs, with boxes decoded against fixed anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(2, 3, 3, padding=1)
        self.scores, self.boxes = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 4, 1)
        self.register_buffer("anchors", torch.rand(16, 4))

    def forward(self, x: Tensor) -> Detection:
        h = F.hardswish(self.body(x))
        raw = self.boxes(h).flatten(2).transpose(1, 2)
        middle = self.anchors[:, :2] + raw[..., :2].tanh() * self.anchors[:, 2:]
        size = self.anchors[:, 2:] * raw[..., 2:].clamp(max=2.0).exp()
        boxes = torch.cat([middle - size / 2, middle + size / 2], dim=-1)
        return Detection(self.scores(h).flatten(1).sigmoid(), boxes)


class TwoTowers(nn.Module):
    """Two perturbed inputs, embedded by one network, compared by their cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        a, b = self.tower(left), self.tower(right)
        a, b = a + 2.0, b + 2.0
        return {"cosine": F.cosine_similarity(a, b, dim=1), "both": [a - b, (a * b).sum(1)]}


class Conditioned(nn.Module):
    """FiLM: an image modulated by a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.film = nn.Conv2d(1, 3, 3), nn.Linear(2, 6)
        self.head = nn.LazyLinear(2)

    def forward(self, image: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.film(condition)[..., None, None].chunk(2, dim=1)
        x = F.relu((1 + gamma) * self.conv(image) + beta)
        return self.head(F.adaptive_max_pool2d(x, 1).flatten(1))


class SharedWeights(nn.Module):
    """One layer at several places, its transpose too, and a weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(torch.relu(self.layer(x)))
        return F.linear(torch.relu(self.tied(x)), self.layer.weight.t())


class Normalized(nn.Module):
    """Spectral norm, orthogonal and hand-written parametrisations."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Linear(4, 4))
        self.b = parametrizations.orthogonal(nn.Linear(4, 4))
        self.c = nn.Linear(4, 2)
        parametrize.register_parametrization(self.c, "weight", Symmetric())
        self.d = torch.nn.utils.weight_norm(nn.Linear(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x).relu()).relu()))


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.abs()


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Functional(nn.Module):
    """All weights in a dictionary of parameters, layers as functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {"conv": torch.randn(3, 2, 3), "scale": torch.rand(3), "out": torch.randn(2, 9)}
        )
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        w = self.weights
        x = F.conv1d(F.pad(x, (1, 1), mode="circular"), w["conv"], stride=2)
        x = F.batch_norm(x, self.mean, self.var, w["scale"], training=self.training)
        x = F.dropout(F.leaky_relu(x, 0.2), 0.3, self.training)
        return F.linear(torch.flatten(x, start_dim=1), w["out"])


class Mixture(nn.Module):
    """A dense mixture of experts, by stacked weights and einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 4, 2)), nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        experts = torch.einsum("bi,eio->beo", x, self.weight) + self.bias
        return (self.gate(x).softmax(-1).unsqueeze(-1) * experts.relu()).sum(1)


class Inception(nn.Module):
    """Branches of several widths, concatenated; channel shuffle and grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(2, 2, k, padding=k // 2) for k in (1, 3, 5))
        self.grouped = nn.Conv2d(8, 4, 1, groups=2)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([branch(x) for branch in self.branches] + [pooled], 1)
        return F.relu6(self.grouped(self.shuffle(x))).mean(dim=[2, 3])


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.PReLU())
        self.up = nn.PixelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        smooth = F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=False)
        return self.up(self.body(x)) + smooth


class ResponseNorm(nn.Module):
    """Local response normalisation between convolution and pooling, as in AlexNet's paper."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3), nn.LocalResponseNorm(4, alpha=2.0, k=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(self.norm(self.conv(x).relu()), 2, ceil_mode=True).flatten(1)


class Maxout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 9), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(1, (3, 3)).amax(2)
        return torch.sort(self.second(x), dim=1, descending=True)[0][:, :2]


class Bottleneck(nn.Module):
    """Several returned values of which one is a constant and one the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)
        self.register_buffer("scale", torch.tensor([2.0, 3.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.up(F.mish(self.down(x))), x, self.scale * 2


class Sparse(nn.Module):
    """Writes into a buffer of zeros: scattering features to a grid."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.register_buffer("places", torch.tensor([0, 3, 5]))
        self.conv = nn.Conv1d(3, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        grid = x.new_zeros(x.shape[0], 3, 6)
        grid[:, :, self.places] = self.embed(x).transpose(1, 2)
        return self.conv(grid).relu().sum(-1)


class Normalizing(nn.Module):
    """The preprocessing of a pipeline inside the model: bytes, mean, standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1))
        self.net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(1), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = ((x * 255.0).clamp(0, 255) / 255.0 - self.mean) / self.std
        return self.net(x) / 0.5


class Wavelet(nn.Module):
    """A fixed filter bank written as products, energies and a logarithm."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.arange(6.0)[:, None] * torch.arange(3.0) * math.pi / 6
        self.register_buffer("real", angles.cos())
        self.register_buffer("imaginary", angles.sin())
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        energy = (x @ self.real) ** 2 + torch.matmul(x, self.imaginary) ** 2
        return self.head(torch.log1p(energy))


def lambdas() -> nn.Module:
    return nn.Sequential(
        Lambda(lambda x: x.reshape(x.shape[0], -1)),
        nn.Linear(6, 5),
        Lambda(partial(F.leaky_relu, negative_slope=0.2)),
        Lambda(lambda x: x / (1 + x.abs())),
        Lambda(torch.atan),
        nn.Linear(5, 2),
        Lambda(lambda x: torch.where(x > 1000.0, torch.zeros_like(x), x) if False else x * 2),
    )


def plain(*sizes: int, act: type[nn.Module] = nn.ReLU, **options: Any) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), act(**options)]
    return nn.Sequential(*layers[:-1])


# Shapes of the inputs, without the batch.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "resnet": (Residual, ((3, 8, 8),)),
    "pre-activation": (PreActivation, ((3, 6, 6),)),
    "deep u-net": (DeepUNet, ((1, 9, 8),)),
    "gpt": (GPT, ((4, 4),)),
    "vit": (SmallViT, ((3, 8, 8),)),
    "vae": (VAE, ((1, 4, 4),)),
    "lstm classifier": (LSTMClassifier, ((2, 3),)),
    "tcn": (TCN, ((2, 6),)),
    "pointnet": (PointNet, ((3, 5),)),
    "deep sets": (DeepSets, ((4, 3), (4,))),
    "graph convolution": (GraphConvolution, ((4, 3),)),
    "kan": (KAN, ((3,),)),
    "hat spline": (HatSpline, ((3,),)),
    "siren": (Siren, ((2,),)),
    "radial basis": (RadialBasis, ((3,),)),
    "highway": (Highway, ((4,),)),
    "convnext block": (ConvNeXtBlock, ((4, 4, 4),)),
    "capsules": (Capsules, ((12,),)),
    "coupling": (Coupling, ((4,),)),
    "neural ode": (NeuralODE, ((3,),)),
    "pendulum": (Pendulum, ((2,),)),
    "rocket": (Rocket, ((3,),)),
    "quantiles": (Quantiles, ((4,),)),
    "actor and critic": (ActorCritic, ((4,),)),
    "detector": (Detector, ((2, 4, 4),)),
    "two towers": (TwoTowers, ((4,), (4,))),
    "conditioned": (Conditioned, ((1, 5, 5), (2,))),
    "shared weights": (SharedWeights, ((4,),)),
    "parametrised": (Normalized, ((4,),)),
    "lambdas": (lambdas, ((2, 3),)),
    "functional": (Functional, ((2, 6),)),
    "mixture of experts": (Mixture, ((4,),)),
    "inception": (Inception, ((2, 5, 5),)),
    "super-resolution": (SuperResolution, ((1, 4, 4),)),
    "response norm": (ResponseNorm, ((2, 5, 5),)),
    "maxout": (Maxout, ((4,),)),
    "bottleneck": (Bottleneck, ((4,),)),
    "sparse": (Sparse, ((3, 2),)),
    "preprocessing": (Normalizing, ((3, 4, 4),)),
    "wavelet": (Wavelet, ((6,),)),
    "deep mlp": (lambda: plain(4, 6, 6, 6, 6, 6, 3), ((4,),)),
    "selu mlp": (lambda: plain(4, 6, 6, 3, act=nn.SELU), ((4,),)),
    "one unit": (lambda: nn.Linear(4, 1), ((4,),)),
    "bilinear": (lambda: BilinearPair(), ((3,), (4,))),
    "image tokens": (lambda: Tokens(), ((2, 4, 4),)),
}
# Inputs that stay as they are, by position.
FIXED = {"deep sets": (1,)}


class BilinearPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product = nn.Bilinear(3, 4, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.product(a, b).tanh()


class Tokens(nn.Module):
    """Unfolded patches, attention pooling by a learned query, RMS norm, SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.query = nn.Linear(8, 4), nn.Parameter(torch.randn(4))
        self.norm = nn.RMSNorm(4)
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(F.unfold(x, 2, stride=2).permute(0, 2, 1))
        share = torch.softmax(x @ self.query / 2.0, dim=-1)
        x = self.norm((share[..., None] * x).sum(-2))
        return self.down(F.silu(self.gate(x)) * self.up(x))


def build(name: str, dtype: torch.dtype, batch: int) -> tuple[nn.Module, list[Tensor]]:
    """A network in evaluation mode and an example of each of its inputs."""
    torch.manual_seed(0)
    make, shapes = NETWORKS[name]
    model = make()
    inputs = [torch.randn(batch, *shape) for shape in shapes]
    model(*inputs)
    model = model.to(dtype).eval()
    return model, [x.to(dtype) for x in inputs]
