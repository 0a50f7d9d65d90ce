"""The logit lens: what each layer would say, read off while the forward pass goes by.

Final norm, then output embedding, on the hidden state after the embedding and after each block (nostalgebraist, 2020;
Kishino et al., arXiv 2505.15353). Which modules stand between the last block and the output embedding is seen by
watching a forward pass; that they are the whole way is checked on it, and the engine checks the last layer's values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from klscale.errors import KlscaleError


@dataclass(frozen=True)
class Readout:
    """The `blocks` of a model, and the modules of its `tail`, which lead from a hidden state to the output embedding:
    the final norm, and in some models a projection. It reads len(blocks) + 1 layers; layer 0 is the embedding."""

    blocks: tuple[nn.Module, ...]
    tail: tuple[nn.Module, ...]

    def __call__(self, hidden: Tensor) -> Tensor:
        """What the output embedding would be given after any layer: (T, H) from the hidden states (T, H) there."""
        for module in self.tail:
            hidden = module(hidden)
        return hidden

    @contextlib.contextmanager
    def watching(self, see: Callable[[int, Tensor], None]) -> Iterator[None]:
        """In a forward pass within, `see` is given the number of each layer and its hidden states (batch, tokens, H),
        as soon as they are there."""

        def before(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            see(0, _tensor(arguments[0] if arguments else keywords["hidden_states"]))

        def after(layer: int) -> Callable[..., None]:
            return lambda _module, _arguments, output: see(layer, _tensor(output))

        handles = [self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
        handles += [block.register_forward_hook(after(n)) for n, block in enumerate(self.blocks, 1)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def find_readout(model: Any, forward: Callable[[], Tensor], name: object) -> Readout:
    """The readout of a model. `forward` runs it up to the output embedding and returns what that is given (batch,
    tokens, H). Raises KlscaleError for a model that the lens does not fit."""
    blocks = blocks_of(model)
    if not blocks:
        raise no_lens(name, "It has no stack of blocks.")
    tail: list[nn.Module] = []
    last: list[Tensor] = []
    depth = 0

    def begin(module: nn.Module, _arguments: Any) -> None:
        nonlocal depth
        if last and depth == 0:
            tail.append(module)
        depth += bool(last)

    def end(module: nn.Module, _arguments: Any, output: Any) -> None:
        nonlocal depth
        if module is blocks[-1]:
            last.append(_tensor(output))
        elif last and depth:
            depth -= 1

    head = model.get_output_embeddings()
    watched = [module for module in model.modules() if module is not head]
    handles = [module.register_forward_pre_hook(begin) for module in watched]
    handles += [module.register_forward_hook(end) for module in watched]
    try:
        given = forward()
    finally:
        for handle in handles:
            handle.remove()
    readout = Readout(blocks, tuple(tail))
    if len(last) != 1:
        raise no_lens(name, f"Its last block runs {len(last)} times in a forward pass.")
    try:
        again = readout(last[0])
    except Exception as error:  # a module between that takes more than the hidden state
        raise no_lens(
            name, f"{type(error).__name__} on the way from the last block to the output embedding."
        ) from error
    if again.shape != given.shape or (again - given).float().abs().mean() > 1e-3 * given.float().abs().mean():
        raise no_lens(name, "Between its last block and its output embedding there is more than modules in a row.")
    return readout


def blocks_of(model: Any) -> tuple[nn.Module, ...]:
    """The blocks of a model: its list of modules with the most weights; empty where it has none."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    sizes = [sum(parameter.numel() for parameter in stack.parameters()) for stack in stacks]
    return tuple(stacks[sizes.index(max(sizes))]) if stacks else ()


def no_lens(name: object, why: str) -> KlscaleError:
    return KlscaleError(f"The logit lens does not fit {name}.", why, "Score it without --layers.")


def _tensor(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found
