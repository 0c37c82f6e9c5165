"""Models in which a layer runs several times in one call: real ones that share weights, and loops of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

WORDS, WIDTH, HEADS = 40, 32, 4


def albert(*, layers: int = 12, groups: int = 1, inner: int = 1, **more: Any) -> Any:
    """ALBERT: `groups` blocks of `inner` layers, run as often as makes `layers` blocks."""
    config = transformers.AlbertConfig(
        vocab_size=WORDS, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=layers, num_hidden_groups=groups,
        inner_group_num=inner, num_attention_heads=HEADS, intermediate_size=48, max_position_embeddings=32,
        initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, **more,
    )  # fmt: skip
    return transformers.AlbertForMaskedLM(config).eval()


def causal(ids: Tensor, real: Tensor | None) -> Tensor:
    """Bool [row, 1, query, key]: no later keys, and no padding but for itself."""
    n = ids.shape[1]
    earlier = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
    keys = torch.ones_like(ids, dtype=torch.bool) if real is None else real.bool()
    seen = earlier & keys[:, None, None, :]
    return seen | torch.eye(n, dtype=torch.bool, device=ids.device)


class Block(nn.Module):
    """Self-attention and an MLP behind norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Projections around torch's fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o(z.transpose(1, 2).flatten(-2))


class Universal(nn.Module):
    """A universal transformer: `blocks` blocks, all of them run `loops` times, one set after the other."""

    def __init__(self, *, blocks: int = 1, loops: int = 4) -> None:
        super().__init__()
        self.loops = loops
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x, mask = self.embed(input_ids), causal(input_ids, attention_mask)
        for _ in range(self.loops):
            for block in self.blocks:
                x = block(x, mask)
        return self.head(self.norm(x))


class Recurrent(nn.Module):
    """Recurrent depth: a first block, a core that runs `loops` times with the first block's output mixed in each time,
    and a last block."""

    def __init__(self, *, loops: int = 3) -> None:
        super().__init__()
        self.loops = loops
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.adapter = nn.Linear(2 * WIDTH, WIDTH)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = causal(input_ids, attention_mask)
        first = state = self.blocks[0](self.embed(input_ids), mask)
        for _ in range(self.loops):
            state = self.blocks[1](self.adapter(torch.cat([state, first], dim=-1)), mask)
        return self.head(self.norm(self.blocks[2](state, mask)))


class Halting(nn.Module):
    """A loop over one torch attention in no block of its own, which runs as often as the first token says."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        pads = None if attention_mask is None else attention_mask == 0
        for _ in range(int(input_ids[0, 0])):
            y = self.norm(x)
            x = x + self.attention(y, y, y, need_weights=False, key_padding_mask=pads)[0]
        return self.head(x)


class Twice(nn.Module):
    """Fused attention called twice in one run of its module: for each token, and for the one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for p in (self.q, self.k, self.v))
        own = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        other = F.scaled_dot_product_attention(q.roll(1, 2), k, v, attn_mask=mask)
        return self.o((own + 0.5 * other).transpose(1, 2).flatten(-2))


def twice() -> Universal:
    """A universal transformer of one block and two loops, whose attention calls twice."""
    model = Universal(loops=2)
    model.blocks[0].attention = Twice()
    return model.eval()


class Step(nn.Module):
    """One place in a decoder's list of layers, at which a shared layer runs with a cache of this place's own."""

    def __init__(self, shared: nn.Module, place: int) -> None:
        super().__init__()
        self.shared, self.place = shared, place

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.shared.self_attn.layer_idx = self.place
        return self.shared(*args, **kwargs)


def looped_llama(*, loops: int = 3, **more: Any) -> Any:
    """A Llama whose one layer runs `loops` times, with a cache for each time."""
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=loops, num_attention_heads=HEADS, num_key_value_heads=2,
        intermediate_size=48, max_position_embeddings=64, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
        eos_token_id=None, **more,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    shared = model.model.layers[0]
    model.model.layers = nn.ModuleList(Step(shared, n) for n in range(loops))
    return model.eval()


class AtCall:
    """By hand, and in no way ours: changes what a module is given (`"in"`) or gives (`"out"`) at some of its calls,
    counted from 0 since the hook was put on or `count` was last set to 0; keeps what was there at each."""

    def __init__(
        self, module: nn.Module, change: Callable[[Tensor], Tensor] = lambda x: x, *, calls: Sequence[int] = (),
        side: str = "in",
    ) -> None:  # fmt: skip
        self.module, self.change, self.calls, self.side = module, change, calls, side
        self.count, self.seen = 0, list[Tensor]()

    def __enter__(self) -> AtCall:
        if self.side == "in":
            self.handle = self.module.register_forward_pre_hook(lambda _, args: (self._at(args[0]), *args[1:]))
        else:
            self.handle = self.module.register_forward_hook(lambda _, __, output: self._of(output))
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _at(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        self.count += 1
        return self.change(x) if self.count - 1 in self.calls else x

    def _of(self, output: Any) -> Any:
        return (self._at(output[0]), *output[1:]) if isinstance(output, tuple) else self._at(output)


def put_heads(new: Tensor | float, heads: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """These heads' part of [row, position, head * d] replaced by that of another tensor, or by a number."""

    def change(x: Tensor) -> Tensor:
        x, d = x.clone(), x.shape[-1] // HEADS
        for head in heads:
            part = slice(head * d, (head + 1) * d)
            x[..., part] = new[..., part] if torch.is_tensor(new) else new
        return x

    return change


def outs(model: nn.Module) -> list[nn.Module]:
    """The output projections, one for each layer."""
    return [child for name, child in model.named_modules() if name.endswith(("attention.dense", ".o", "o_proj"))]


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules of the layers."""
    kinds = (Block, transformers.models.albert.modeling_albert.AlbertLayer,
             transformers.models.llama.modeling_llama.LlamaDecoderLayer)  # fmt: skip
    return [child for child in model.modules() if isinstance(child, kinds)]
