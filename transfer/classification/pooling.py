"""Attentive pooling: learned queries gather the tokens of a frozen backbone into one vector.

Four published heads. `ep`, efficient probing: tokens are their own keys, the scale is the whole width,
each query owns a slice of the value's channels. `capi`: one query cut into heads of 64, keys and
values with bias. `vjepa`: a cross-attention block with MLP; its attention's output projection is in
the published weights but never applied. `aim`: batch norm over all tokens first, keys and values
without bias.

None of them projects every token to a value: softmax weights sum to one, so a head's value is the
projection of its weighted mean of tokens. Same function, a twelfth of the products at ViT-B's size.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mimbench.system.errors import UserError
from transfer.classification.heads import StepNorm

Head = Literal["ep", "capi", "vjepa", "aim"]
CPU_IMAGES = 4
"""Images whose tokens go through a processor's cache together: widened, multiplied, averaged."""
CAPI_HEAD = 64
"""Width of one of CAPI's heads."""


def gather(tokens: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return attention (b, h, n) and the weighted means of the tokens (b, h, c).

    Args:
        tokens: (b, n, c), in half precision where they are stored so.
        keys: (h, c): what a token is multiplied with to get its logit, scale included.
    """
    at_once = len(tokens) if tokens.is_cuda else CPU_IMAGES
    parts = [_gather(part.float(), keys) for part in tokens.split(at_once)]
    attention, means = zip(*parts, strict=True)
    return torch.cat(attention), torch.cat(means)


def _gather(tokens: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(tokens, keys).transpose(1, 2).contiguous()
    attention = torch.softmax(logits, dim=-1)
    return attention, torch.bmm(attention, tokens)


def project(means: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return each head's slice of the value of its own mean, joined (b, w).

    Args:
        means: (b, h, c).
        value: (w, c); head j owns rows j w / h to (j + 1) w / h.
        bias: (w,)
    """
    heads = means.shape[1]
    slices = torch.bmm(means.transpose(0, 1), value.unflatten(0, (heads, -1)).transpose(1, 2))
    joined = slices.transpose(0, 1).flatten(1)
    return joined if bias is None else joined + bias


class EfficientPooling(nn.Module):
    """Efficient probing's pooling: queries and one value matrix, nothing else."""

    def __init__(
        self, width: int, *, queries: int = 32, reduction: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        if width % (queries * reduction):
            raise UserError(
                f"width {width} does not divide by {queries} queries x reduction {reduction}; "
                "choose a number of queries that divides it"
            )
        self.width = width // reduction
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.value = nn.Linear(width, self.width, bias=bias)

    def attention(self, tokens: Tensor) -> Tensor:
        """Return (b, queries, n)."""
        return gather(tokens, self._keys())[0]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, width) from tokens (b, n, c)."""
        means = gather(tokens, self._keys())[1]
        return project(means, self.value.weight, self.value.bias)

    def _keys(self) -> Tensor:
        return self.queries[0] * self.queries.shape[2] ** -0.5


class SplitQuery(nn.Module):
    """One learned query cut into heads; keys and values are linear in the tokens (CAPI, AIM)."""

    def __init__(self, width: int, *, heads: int, bias: bool) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width {width} does not divide into {heads} heads")
        self.width, self.heads = width, heads
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, width) from tokens (b, n, c)."""
        keys = fold_query(self.query, self.key.weight, self.heads)
        return project(gather(tokens, keys)[1], self.value.weight, self.value.bias)


def fold_query(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """Return (heads, c) that multiply a token to what head's query . key(token) x scale is.

    A bias of the keys adds the same to every token's logit, and softmax takes it out again.
    """
    width = query.shape[0] // heads
    folded = torch.bmm(query.view(heads, 1, width), key.unflatten(0, (heads, width)))
    return folded[:, 0] * width**-0.5


def capi_pooling(width: int) -> SplitQuery:
    """Return CAPI's pooling, initialised as published."""
    if width % CAPI_HEAD:
        raise UserError(f"CAPI's heads are {CAPI_HEAD} wide; width {width} is no multiple of it")
    pooling = SplitQuery(width, heads=width // CAPI_HEAD, bias=True)
    for linear in (pooling.key, pooling.value):
        nn.init.trunc_normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    return pooling


class AimPooling(nn.Module):
    """AIM's pooling: batch norm over every token of the batch, then one split query."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.width = width
        self.norm = StepNorm(width, eps=1e-6)
        self.split = SplitQuery(width, heads=heads, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, width) from tokens (b, n, c)."""
        normed = self.norm(tokens.float().flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.split(normed)


class VjepaPooling(nn.Module):
    """V-JEPA's pooling: one query through a cross-attention block whose output is not projected."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for linear in (self.q, self.key, self.value, self.up, self.down):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            # as published for the first block of a stack
            self.down.weight.div_(2**0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (b, width) from tokens (b, n, c)."""
        keys = fold_query(self.q(self.query), self.key.weight, self.heads)
        means = gather(self.norm1(tokens.float()), keys)[1]
        x = self.query + project(means, self.value.weight, self.value.bias)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class AttentiveHead(nn.Module):
    """A pooling and a linear classifier; batch norm between them where the recipe has it."""

    def __init__(self, pooling: nn.Module, width: int, classes: int, *, norm: bool) -> None:
        super().__init__()
        self.pooling = pooling
        self.norm = StepNorm(width, eps=1e-6) if norm else nn.Identity()
        self.linear = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (b, classes) from tokens (b, n, c)."""
        return self.linear(self.norm(self.pooling(tokens)))

    def end_step(self) -> None:
        """Take the batch statistics of the step that ended into the running ones."""
        for module in self.modules():
            if isinstance(module, StepNorm):
                module.commit()


def build_head(
    kind: Head, *, width: int, heads: int, classes: int, queries: int = 32
) -> AttentiveHead:
    """Return a freshly initialised published head.

    Args:
        kind: Whose.
        width: Of the tokens.
        heads: The encoder's, for those that follow it.
        classes: Outputs.
        queries: Of `ep`.
    """
    if kind == "ep":
        pooling = EfficientPooling(width, queries=queries)
        return AttentiveHead(pooling, pooling.width, classes, norm=True)
    if kind == "aim":
        return AttentiveHead(AimPooling(width, heads=heads), width, classes, norm=False)
    pooling = capi_pooling(width) if kind == "capi" else VjepaPooling(width, heads=heads)
    head = AttentiveHead(pooling, width, classes, norm=False)
    nn.init.trunc_normal_(head.linear.weight, std=0.02)
    nn.init.zeros_(head.linear.bias)
    return head
