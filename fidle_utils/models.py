"""Four small models in plain PyTorch. Seed with `torch.manual_seed` before you build one."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["GPT", "MLP", "SmallCNN", "residual_chain"]


class _Model(nn.Module):
    def num_parameters(self):
        """Return how many numbers the model learns; a shared (tied) weight counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


class MLP(_Model):
    """A multilayer perceptron: (batch, ...) → (batch, n_classes), `depth` hidden layers of `width`, ReLU."""

    def __init__(self, width=64, depth=2, n_inputs=64, n_classes=10):
        super().__init__()
        sizes = [n_inputs] + [width] * depth
        layers = [nn.Flatten()]
        for n_in, n_out in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(n_in, n_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_classes))

    def forward(self, x):
        return self.layers(x)


class SmallCNN(_Model):
    """Two 3×3 convolutions for 8×8 images: (batch, 1, 8, 8) → (batch, n_classes); batch norm on demand."""

    def __init__(self, width=16, n_classes=10, batch_norm=False):
        super().__init__()
        norm = nn.BatchNorm2d if batch_norm else lambda channels: nn.Identity()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            norm(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            norm(2 * width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(2 * width * 2 * 2, n_classes)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class _Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


def residual_chain(n_blocks=8, width=64, n_classes=10):
    """Return a `Sequential` to cut into stages: (batch, width) → (batch, n_classes), the last block the head.

    All blocks before it are x + tanh(linear(x)): the same work, and the same shape passed on at every cut.
    """
    return nn.Sequential(*(_Residual(width) for _ in range(n_blocks - 1)), nn.Linear(width, n_classes))


class _Attention(nn.Module):
    def __init__(self, width, n_heads):
        super().__init__()
        # Three matrices rather than one: each can be cut in columns, which tensor parallelism does.
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.head_width = width // n_heads

    def forward(self, x):
        # -1 heads, not n_heads: the same line serves a rank that holds only some of them.
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))


class _Block(nn.Module):
    def __init__(self, width, n_heads):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class GPT(_Model):
    """A decoder-only transformer, pre-norm: ids (batch, length) → logits (batch, length, vocab_size).

    A text has at most `block_size` ids. Each block holds 12·width² + 13·width parameters.
    With `tied_head` the output layer is the token embedding.
    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019, section 2.3.
    """

    def __init__(self, vocab_size, block_size=64, n_layers=2, n_heads=4, width=64, tied_head=True):
        super().__init__()
        if width % n_heads:
            raise ValueError(f"width={width} cannot be shared by n_heads={n_heads}: choose a multiple.")
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(block_size, width)
        self.blocks = nn.ModuleList(_Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.apply(self._initialise)
        if tied_head:
            self.head.weight = self.token_embedding.weight

    @staticmethod
    def _initialise(module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_embedding(ids) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
