"""A transformer as the planner sees it: its sizes, its parameters and its floating-point operations."""

from dataclasses import dataclass, replace

from fidle_utils.planner.errors import check, check_counts

__all__ = ["MODELS", "Transformer"]


@dataclass(frozen=True)
class Transformer:
    """A decoder of `layers` equal blocks; sizes in elements, `sequence_length` in tokens.

    `kv_heads` below `heads` is grouped-query attention; `ffn` is the inner size of the feed-forward, 4·hidden
    if left out; `gated` gives it a third matrix (SwiGLU). `tied`: the head shares the embedding's matrix.
    `biases`: "all" (GPT), "qkv" (Qwen) or "none" (Llama). `learned_positions`: a table of positions (GPT).
    `source` says where the sizes come from.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    vocab: int
    sequence_length: int
    kv_heads: int | None = None
    ffn: int | None = None
    gated: bool = False
    tied: bool = True
    biases: str = "all"
    learned_positions: bool = False
    source: str = ""

    def __post_init__(self):
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.ffn is None:
            object.__setattr__(self, "ffn", 4 * self.hidden)
        sizes = ("layers", "hidden", "heads", "vocab", "sequence_length", "kv_heads", "ffn")
        check_counts(**{size: getattr(self, size) for size in sizes})
        check(
            self.heads % self.kv_heads == 0,
            f"{self.heads} heads do not share {self.kv_heads} kv heads: take a divisor of {self.heads}",
        )
        check(
            self.hidden % self.heads == 0,
            f"hidden size {self.hidden} is not a multiple of {self.heads} heads: change one of them",
        )
        check(self.biases in ("all", "qkv", "none"), f"biases={self.biases!r}: 'all', 'qkv' or 'none'")

    def at(self, sequence_length):
        """Return the same model with sequences of another length."""
        return replace(self, sequence_length=sequence_length)

    @property
    def head_size(self):
        return self.hidden // self.heads

    @property
    def kv_hidden(self):
        """The width of the keys, and of the values: kv_heads · head size."""
        return self.kv_heads * self.head_size

    @property
    def layer_matrices(self):
        """The parameters in the matrices of one layer: 2h² + 2h·h_kv for attention, 2hf or 3hf after it.

        With h_kv = h and f = 4h that is the 12h² of arXiv:2104.04473, equation 2.
        """
        attention = 2 * self.hidden**2 + 2 * self.hidden * self.kv_hidden
        return attention + (3 if self.gated else 2) * self.hidden * self.ffn

    @property
    def layer_parameters(self):
        """The parameters of one layer, with norms (2h each with biases, h without) and biases."""
        h, qkv_bias = self.hidden, self.hidden + 2 * self.kv_hidden
        small = {"none": 2 * h, "qkv": 2 * h + qkv_bias, "all": 4 * h + qkv_bias + h + self.ffn + h}
        return self.layer_matrices + small[self.biases]

    @property
    def embedding_parameters(self):
        """The parameters of the table of tokens, and of positions where they are learned."""
        positions = self.sequence_length if self.learned_positions else 0
        return (self.vocab + positions) * self.hidden

    @property
    def head_parameters(self):
        """The parameters that the head has of its own: none if it is tied to the embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def parameters(self):
        """All parameters: 12lh²(1 + 13/12h + (V+s)/12lh) for a GPT (arXiv:2104.04473, equation 2)."""
        last_norm = (2 if self.biases == "all" else 1) * self.hidden
        ends = self.embedding_parameters + self.head_parameters + last_norm
        return self.layers * self.layer_parameters + ends

    def flops_per_token(self, causal=False):
        """The model FLOPs of one token, forward and backward, without any recomputation.

        72Lh²(1 + s/6h + V/12Lh) for a GPT (arXiv:2205.05198, equation 7 over Bs): 6 a parameter of a matrix,
        12·L·h·s for attention, which counts every pair of tokens; `causal` counts half of them.
        """
        matrices = self.layers * self.layer_matrices + self.vocab * self.hidden
        attention = 12 * self.layers * self.hidden * self.sequence_length
        return 6 * matrices + attention / (2 if causal else 1)

    def __repr__(self):
        return (
            f"{self.name}: {self.parameters / 1e9:.4g} billion parameters · {self.layers} layers of "
            f"{self.hidden} · {self.heads} heads · sequences of {self.sequence_length}"
        )


def _llama(name, layers, hidden, heads, ffn, sequence_length=8192):
    source = "torchtitan's llama3 configs; vocabulary as in oumi's Llama 3.1 notes"
    llama = {"kv_heads": 8, "ffn": ffn, "gated": True, "tied": False, "biases": "none", "source": source}
    return Transformer(name, layers, hidden, heads, 128256, sequence_length, **llama)


def _qwen(name, layers, hidden, heads, ffn):
    source = "idriscnrs/Democratizing-LLM-FT logs: these sizes give the logged parameter count exactly"
    qwen = {"kv_heads": 8, "ffn": ffn, "gated": True, "tied": False, "biases": "qkv", "source": source}
    return Transformer(name, layers, hidden, heads, 152064, 4096, **qwen)


MODELS = {
    model.name: model
    for model in (
        Transformer(
            "GPT-3 175B",
            96,
            12288,
            96,
            51200,
            2048,
            learned_positions=True,
            source="arXiv:2205.05198, Table 3: Megatron's, with a vocabulary of 51200",
        ),
        Transformer(
            "BLOOM 176B",
            70,
            14336,
            112,
            250880,
            2048,
            source="bigscience train/tr11-176B-ml: ALiBi, so no positions; 176.247 billion printed",
        ),
        _llama("Llama 3 8B", 32, 4096, 32, 14336),
        _llama("Llama 3 70B", 80, 8192, 64, 28672),
        _llama("Llama 3 405B", 126, 16384, 128, 53248),
        _qwen("Qwen2.5 14B", 48, 5120, 40, 13824),
        _qwen("Qwen2.5 32B", 64, 5120, 40, 27648),
        _qwen("Qwen2.5 72B", 80, 8192, 64, 29568),
    )
}
