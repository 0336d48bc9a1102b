"""BERT-type encoders of text, trained from scratch, and the networks on top of them.

``MaskedLanguageModel`` and ``TokenClassifier`` read token ids; ``CrystalText`` reads crystals and
writes them as text first, so that text and geometry can be compared on the same rows.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pymatgen.core import Structure
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from matattn.errors import StructureError
from matattn.models.sizes import check_sizes
from matattn.structures.batch import Structures
from matattn.structures.crystal_text import PAD, REPRESENTATIONS, VOCABULARY, represent, token_ids
from matattn.structures.image_rule import ImageRule
from matattn.structures.neighbors import SELF
from matattn.structures.network import StructureNetwork

NUMBERS = ("digits", "place_values")


class SelfAttention(nn.Module):
    r"""Multi-head softmax attention between the tokens of a text.

    .. math:: y_i = W_o \sum_j \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{d}) v_j

    j runs over the tokens of the same text except padding (Vaswani et al., arXiv:1706.03762).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def mix(
        self, x: Float[Tensor, "texts tokens dim"], real: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens dim"]:
        """Return the tokens after attention, where ``real`` says which tokens are no padding."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        return self.output(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """A pre-norm residual block, x + mix(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.attention = SelfAttention(dim, num_heads)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "texts tokens dim"], real: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens dim"]:
        """Return the tokens after the block."""
        x = x + self.dropout(self.attention.mix(self.norms[0](x), real))
        return x + self.dropout(self.ffn(self.norms[1](x)))


class TextEncoder(nn.Module):
    """A BERT-type encoder with learned positions: token ids [B, L] -> vectors [B, L, dim].

    Devlin et al., arXiv:1810.04805. Blocks normalise before each step, not after it (Xiong et al.,
    arXiv:2002.04745), which trains without a long warm-up. ``padding`` is the id of padding tokens.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int = 128,
        num_heads: int = 4,
        num_blocks: int = 2,
        ffn_dim: int = 512,
        max_length: int = 128,
        dropout: float = 0.1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"num_blocks": num_blocks, "ffn_dim": ffn_dim, "max_length": max_length}
        check_sizes(dim, num_heads, **sizes)
        self.max_length, self.padding = max_length, padding
        self.embedding = nn.Embedding(vocab_size, dim)
        self.position = nn.Parameter(torch.empty(max_length, dim))
        self.norm_in, self.norm_out = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, num_heads, ffn_dim, dropout) for _ in range(num_blocks)
        )
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(
        self, ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens {self.position.shape[1]}"]:
        """Return the encoded tokens."""
        real = ids != self.padding
        x = self.dropout(self.norm_in(self.embedding(ids) + self.position[: ids.shape[1]]))
        for block in self.blocks:
            x = block(x, real)
        return self.norm_out(x)


class MaskedLanguageModel(nn.Module):
    """A language model: scores of every entry of the vocabulary for chosen tokens.

    The output layer shares its weights with the embedding.
    """

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.embedding.embedding_dim
        self.transform = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(encoder.embedding.num_embeddings))

    def forward(
        self, ids: Int[Tensor, "texts tokens"], chosen: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "chosen vocabulary"]:
        """Return the scores of the chosen tokens."""
        hidden = self.transform(self.encoder(ids)[chosen])
        return linear(hidden, self.encoder.embedding.weight, self.bias)


class TokenClassifier(nn.Module):
    """A classifier of tokens: ids [B, L] -> logits [B, L, labels].

    Arguments are those of ``TextEncoder``, and the number of labels.
    """

    kind = "text"
    citations = ("matter",)

    def __init__(
        self,
        vocab_size: int,
        num_labels: int,
        dim: int = 128,
        num_heads: int = 4,
        num_blocks: int = 2,
        ffn_dim: int = 512,
        max_length: int = 128,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = TextEncoder(
            vocab_size, dim, num_heads, num_blocks, ffn_dim, max_length, dropout
        )
        self.dropout = nn.Dropout(dropout)
        self.labels = nn.Linear(dim, num_labels)

    def forward(
        self, ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens {self.labels.out_features}"]:
        """Return the logits of every token."""
        return self.labels(self.dropout(self.encoder(ids)))


class CrystalText(StructureNetwork):
    """A network for properties of a crystal from its text: mean of encoded tokens, linear layer.

    The network sees a representation of ``matattn.structures.crystal_text`` and nothing else. A
    change of the text that leaves the crystal as it is (order of sites, choice of cell) therefore
    changes the prediction. It reads the same batches as the geometric networks, without neighbours.

    Args:
        representation: one of ``matattn.structures.crystal_text.REPRESENTATIONS``.
        numbers: "digits", or "place_values" (digits that carry their power of ten).
        max_length: tokens; longer texts raise an error and are never cut.
        dim, num_heads, num_blocks, ffn_dim, dropout: as ``TextEncoder``.

    Source: MatText (Alampara et al., arXiv:2406.17295), whose encoder has dim 512 and 4 blocks.
    """

    citations = ("mattext",)

    def __init__(
        self,
        num_targets: int = 1,
        representation: str = "composition",
        numbers: str = "digits",
        dim: int = 128,
        num_heads: int = 4,
        num_blocks: int = 2,
        ffn_dim: int = 512,
        max_length: int = 512,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if representation not in REPRESENTATIONS:
            options = ", ".join(REPRESENTATIONS)
            raise ValueError(f"representation={representation!r}: expected one of {options}")
        if numbers not in NUMBERS:
            raise ValueError(f"numbers={numbers!r}: expected one of {', '.join(NUMBERS)}")
        self.representation, self.numbers = representation, numbers
        self.encoder = TextEncoder(
            len(VOCABULARY), dim, num_heads, num_blocks, ffn_dim, max_length, dropout,
            VOCABULARY.index(PAD),
        )  # fmt: skip
        self.output = nn.Linear(dim, num_targets)
        self._cache: dict[bytes, list[int]] = {}  # tokens of crystals seen before

    def image_rule(self, tolerance: float, symmetry: float = 0.0) -> ImageRule:
        """Return the rule of no neighbours: every atom has its own image only."""
        return ImageRule(cutoff=SELF / 2)

    def check(self, z: Tensor, pos: Tensor, cell: Tensor, where: str = "structure") -> None:
        """Raise StructureError, beginning with ``where``, for a text longer than ``max_length``."""
        arrays = z.numpy(), pos.double().numpy(), cell.reshape(3, 3).double().numpy()
        count = len(self._tokens(*arrays, where))
        if count > self.encoder.max_length:
            raise StructureError(
                f"{where}: {count} tokens as {self.representation}, and the network reads at most "
                f"{self.encoder.max_length}: train with a larger model.max_length, or leave it out"
            )

    def features(self, batch: Structures) -> Float[Tensor, "crystals dim"]:
        """Return the mean over the tokens of every crystal."""
        atoms = torch.bincount(batch.batch, minlength=batch.num_graphs).tolist()
        cells = batch.cell.cpu().double().numpy()
        parts = zip(
            batch.z.cpu().split(atoms), batch.pos.cpu().double().split(atoms), cells, strict=True
        )
        texts = [self._tokens(z.numpy(), pos.numpy(), cell) for z, pos, cell in parts]
        length = max(map(len, texts))
        padded = [text + [self.encoder.padding] * (length - len(text)) for text in texts]
        ids = torch.tensor(padded, device=batch.z.device)
        real = (ids != self.encoder.padding)[..., None]
        return (self.encoder(ids) * real).sum(1) / real.sum(1)

    def readout(self, features: Float[Tensor, "crystals dim"]) -> Float[Tensor, "crystals targets"]:
        """Return the targets of ``features``."""
        return self.output(features)

    def output_layer(self) -> nn.Linear:
        """Return the layer after the features."""
        return self.output

    def _tokens(
        self, z: np.ndarray, pos: np.ndarray, cell: np.ndarray, where: str = "structure"
    ) -> list[int]:
        """Return the token ids of a crystal."""
        key = z.tobytes() + pos.tobytes() + cell.tobytes()
        if key not in self._cache:
            frac = np.round(pos @ np.linalg.inv(cell), 5) % 1.0  # 0.999999 of float32 is 0
            structure = Structure(cell, z.tolist(), frac)
            text = represent(structure, self.representation, where)
            self._cache[key] = token_ids(text, self.numbers)
        return self._cache[key]
