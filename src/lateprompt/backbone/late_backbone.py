"""`LateBackbone`: trunk → generator → tail, in the place of a Hugging Face backbone.

It takes the backbone's own arguments and gives the backbone's own output for the text positions only: every head and
loss of transformers works on it unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import DynamicCache
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import (
    BASE,
    check_mask,
    current_extras,
    first,
    gathered,
    generation_source,
    replace_hidden,
    states_at,
    text_of,
)
from lateprompt.backbone.families import family_of, num_layers_of
from lateprompt.backbone.kernels.cpu_dropout import FastDropout
from lateprompt.backbone.kernels.half_matmul import wide_products
from lateprompt.backbone.kernels.read_positions import lean_view, reading
from lateprompt.backbone.kv_cache import cache_views
from lateprompt.backbone.masks import tail_masks, tail_positions, widen_buffers, with_prompt
from lateprompt.backbone.multi_adapter import check_names, forward_mixed, prompts_of
from lateprompt.backbone.split import Split
from lateprompt.prompts import PromptGenerator
from lateprompt.utils.errors import LatePromptError


@dataclass(frozen=True)
class PromptSlot:
    """Where an adapter's prompt goes.

    Args:
        prompt_layer: the layer after which it is inserted.
        trunk_dropout: whether the trunk keeps dropout while training.
    """

    prompt_layer: int
    trunk_dropout: bool = False


class Detour(Protocol):
    """An adapter that takes another way through the backbone than trunk → generator → tail.

    See `lateprompt.peft_method.input_prompts`.
    """

    def __call__(
        self,
        layer: LateBackbone,
        call: dict[str, Any],
        trunk_states: torch.Tensor | None,
        read: torch.Tensor | None,
        source_mask: torch.Tensor | None,
    ) -> Any:
        """The backbone's output for the text positions, or for the positions `read` (batch, reads) of them."""


class LateBackbone(nn.Module):
    """A Hugging Face backbone (`base_layer`) with late prompts, one named generator each.

    Args:
        backbone: the module that owns embeddings and layers (`lateprompt.backbone.families.core_of`).

    Subclasses say with `selected_adapter` which generator a call uses; here it is the attribute `active`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        # First: what an adapter trains inside the backbone has its name here, where adapters are looked for.
        self.late_prompt_beneath = nn.ModuleDict()
        self.base_layer = backbone
        self.late_prompt_generators = nn.ModuleDict()
        self.late_prompt_heads = nn.ModuleDict()
        self.slots: dict[str, PromptSlot] = {}
        self.detours: dict[str, Detour] = {}
        self.active: str | None = None
        self.compile_tail = False
        self.trunk_released = False
        self.family = family_of(backbone)
        if getattr(backbone.config, "is_decoder", False) and not self.family.causal:
            raise LatePromptError(  # the tail's masks are those of the family
                f"is_decoder=True makes {type(backbone).__name__} a decoder, which here is an encoder; load it with "
                "is_decoder=False, or take a decoder's architecture"
            )
        self.num_layers = num_layers_of(backbone)
        self._signature = inspect.signature(type(backbone).forward)
        # Views are kept out of `_modules`: no second entry in a state dict, no parameter counted twice.
        self.__dict__["_splits"] = {}
        self.__dict__["_lean"] = {}
        self.__dict__["_mode"] = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    def add_prompt(self, name: str, generator: PromptGenerator | None, slot: PromptSlot) -> None:
        """Add the adapter `name`; without a generator it has a place in the stack but no prompt (a head alone)."""
        self.slots[name] = slot
        if generator is not None:
            self.late_prompt_generators[name] = generator
        if self.active is None:
            self.active = name
        self.__dict__["_mode"] = None

    def remove_prompt(self, name: str) -> None:
        self.slots.pop(name, None)
        self.detours.pop(name, None)
        for table in (self.late_prompt_generators, self.late_prompt_heads, self.late_prompt_beneath):
            if name in table:
                del table[name]

    def selected_adapter(self) -> str | None:
        """The adapter of a call that names none; None runs the bare backbone."""
        return self.active

    @property
    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the tail's last layer (where accelerate offloads it: the device it runs on)."""
        layer: Any = list(self.base_layer.get_submodule(self.family.layers).children())[-1]
        parameters = list(layer.parameters())
        # Quantised weights are whole numbers, beside norms and biases in the type that the layer computes in.
        parameter = next((p for p in parameters if p.is_floating_point()), parameters[0])
        if parameter.device.type != "meta":
            return parameter.device, parameter.dtype
        hooks = (getattr(module, "_hf_hook", None) for module in layer.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((device for device in devices if device is not None), "cpu")
        return torch.device(device), parameter.dtype

    def split_at(self, prompt_layer: int) -> Split:
        """Trunk and tail for a prompt layer, built once and again when the backbone has changed."""
        split: Split | None = self._splits.get(prompt_layer)
        if split is None or split.is_stale:
            split = Split(self.base_layer, prompt_layer)
            # A pooler reads position 0, which is the prompt here: it is applied to the text by hand.
            if split.tail._modules.get("pooler") is not None:
                split.tail._modules["pooler"] = None
            self._splits[prompt_layer] = split
            self._lean.pop(prompt_layer, None)
            self.__dict__["_mode"] = None
        return split

    def lean_tail(self, prompt_layer: int) -> nn.Module:
        """The tail for calls that read some positions: see `lateprompt.backbone.kernels.read_positions`."""
        split = self.split_at(prompt_layer)
        made: tuple[nn.Module, bool] | None = self._lean.get(prompt_layer)
        if made is None or made[1] != self.compile_tail:
            originals: list[nn.Module] = []
            made = lean_view(split.tail, self.family, originals, compiled=self.compile_tail), self.compile_tail
            split.watch(originals)
            made[0].train(self.training)
            self._lean[prompt_layer] = made
        return made[0]

    def train(self, mode: bool = True) -> LateBackbone:
        super().train(mode)
        self.__dict__["_mode"] = None
        return self

    def set_mode(self, slot: PromptSlot, split: Split) -> bool:
        """Put the tail in this module's mode and the trunk in eval mode; True if the trunk needs a gradient.

        A frozen trunk without dropout is a pure function of its input: its states can be kept. It keeps dropout where
        the slot says so, or where something inside it is trained (LoRA below the prompt).
        """
        trains_trunk = torch.is_grad_enabled() and any(p.requires_grad for p in split.trunk.parameters())
        trunk_mode = self.training and (slot.trunk_dropout or trains_trunk)
        mode = (slot.prompt_layer, self.training, trunk_mode)
        if self._mode != mode:
            split.trunk.train(trunk_mode)
            split.tail.train(self.training)
            if slot.prompt_layer in self._lean:
                self._lean[slot.prompt_layer][0].train(self.training)
            self.__dict__["_mode"] = mode
        return trains_trunk

    def whole_mode(self, training: bool | None = None) -> None:
        """Put the whole backbone in this module's mode (or the given one): an earlier call may have left another."""
        mode = self.training if training is None else training
        if self._mode != (0, mode, mode):
            self.base_layer.train(mode)
            self.__dict__["_mode"] = (0, mode, mode)

    def late_mode(self, prompt_layer: int) -> Split:
        """The split at a prompt layer, its trunk in eval mode and its tail in this module's."""
        split = self.split_at(prompt_layer)
        self.set_mode(PromptSlot(prompt_layer), split)
        return split

    def run_trunk(self, prompt_layer: int, call: dict[str, Any]) -> torch.Tensor:
        """The trunk's states (batch, length, hidden), without gradient."""
        arguments = {key: call[key] for key in _TRUNK_ONLY if call.get(key) is not None}
        if self.family.causal:
            arguments["use_cache"] = False
        with torch.no_grad():
            output = self.late_mode(prompt_layer).trunk(**arguments, return_dict=True)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def run_base(self, call: dict[str, Any]) -> Any:
        if self._mode is not None:
            self.whole_mode()
        return self.base_layer(**call)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's own arguments, those of `CallExtras` (as keywords, or from `call_extras`), and `read`.

        Args:
            args, kwargs: see above. `read` (batch,) or (batch, reads) names the text positions that are looked at:
                `last_hidden_state` is then (batch, reads, hidden), and what only others need is not computed.

        Returns:
            The backbone's own output for the n text positions. `hidden_states` (if asked for) are those of the text
            too, and begin at the prompt layer when `trunk_states` are given; `attentions` include the prompt's columns.

        Raises:
            LatePromptError: an adapter that does not exist, a mask that is not 2-D, states or masks of the wrong shape,
                or a replica of `torch.nn.DataParallel`.
        """
        if self.__dict__.get("_is_replica"):
            raise LatePromptError(
                "torch.nn.DataParallel copies the backbone, but not its trunk and tail; start one process "
                "a GPU (accelerate launch, or torchrun --nproc-per-node=2), or show one GPU (CUDA_VISIBLE_DEVICES=0)"
            )
        with wide_products(*self.placement):
            return self._forward(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind_partial(self, *args)
        call = {**{k: v for k, v in bound.arguments.items() if k not in ("self", "kwargs")}, **kwargs}
        extras = current_extras()
        source_mask = first(call.pop("source_mask", None), extras.source_mask)
        trunk_states = first(call.pop("trunk_states", None), extras.trunk_states)
        names = first(call.pop("adapter_names", None), extras.adapter_names)
        if extras.source_length is not None and not self.has_cached_prompt(call):
            text = text_of(call, trunk_states)
            source_mask = generation_source(source_mask, call.get("attention_mask"), text, extras.source_length)
        read = call.pop("read", None)
        if read is not None:
            read = read[:, None] if read.ndim == 1 else read
        if trunk_states is None:
            self.check_trunk()
        selected = None if names is not None else self.selected_adapter()
        if names is not None:
            names = list(names)
            check_names(self, names, text_of(call, trunk_states).shape[0])
        if trunk_states is None and (selected is None if names is None else all(n == BASE for n in names)):
            output = self.run_base(call)
            return output if read is None else gathered(output, read)
        self.check_call()
        return_dict = call.pop("return_dict", None)
        if return_dict is None:
            return_dict = getattr(self.base_layer.config, "return_dict", True)
        check_mask(call, trunk_states)
        detour = None if selected is None else self.detours.get(selected)
        if detour is not None:
            output = detour(self, call, trunk_states, read, source_mask)
        elif names is not None:
            output = forward_mixed(self, names, call, source_mask, trunk_states, read)
        else:
            if selected is None:
                raise LatePromptError(
                    "trunk_states were given, but no late prompt is active: they are states at no layer"
                )
            output = self.forward_group([selected], None, call, source_mask, trunk_states, read)
        return output if return_dict else output.to_tuple()

    def check_call(self) -> None:
        """Raise LatePromptError where this module cannot compute what it is asked for: see the messages."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise LatePromptError(
                "a late prompt cannot be traced by torch.jit.trace (nor by torch.onnx.export(dynamo=False)): the trace "
                "would keep one text's lengths for all; use torch.export.export or torch.compile"
            )

    def rows_by_layer(self, names: Sequence[str]) -> dict[int | None, list[int]]:
        """The rows of `adapter_names` by the layer after which their prompts enter (None: no prompt)."""
        groups: dict[int | None, list[int]] = {}
        for row, name in enumerate(names):
            groups.setdefault(self.slots[name].prompt_layer if name in self.slots else None, []).append(row)
        return groups

    def forward_group(
        self,
        adapters: list[str],
        names: list[str] | None,
        call: dict[str, Any],
        source_mask: torch.Tensor | None,
        trunk_states: torch.Tensor | None,
        read: torch.Tensor | None,
    ) -> ModelOutput:
        """Rows whose prompts all enter after the same layer (`names`: each row's adapter, None: all the same)."""
        slot = self.slots[adapters[0]]
        split = self.split_at(slot.prompt_layer)
        trains_trunk = self.set_mode(slot, split)
        mask: torch.Tensor | None = call.get("attention_mask")
        caches = self._caches(call, slot.prompt_layer, trunk_states is not None)
        shared = {k: v for k, v in call.items() if k not in _TRUNK_ONLY}
        if self.family.causal:
            shared["use_cache"] = caches is not None
        trunk_hidden: tuple[torch.Tensor, ...] = ()

        if trunk_states is None:
            embeds = call.get("inputs_embeds")
            keep_graph = trains_trunk or (embeds is not None and embeds.requires_grad)
            ours = self.quick_dropout() if trains_trunk else nullcontext()
            with ours, torch.set_grad_enabled(torch.is_grad_enabled() and keep_graph):
                arguments = {**shared, **{k: call[k] for k in _TRUNK_ONLY if call.get(k) is not None}}
                if caches is not None:
                    arguments["past_key_values"] = caches[0]
                output = split.trunk(**arguments, return_dict=True)
            states: torch.Tensor = output.last_hidden_state
            trunk_hidden = tuple(getattr(output, "hidden_states", None) or ())[:-1]
        else:
            states = self._check_states(trunk_states, first(mask, call.get("input_ids")))

        decoding = caches is not None and caches[1].get_seq_length() > 0  # the prompt is in the cache already
        k = max((self.prompt_length(name) for name in adapters), default=0)
        tail_input = states
        if not decoding and k:
            with self.quick_dropout():
                prompt = prompts_of(self, adapters, names, states, first(source_mask, mask), k)
            tail_input = torch.cat([prompt, states], 1)
        arguments = {key: value for key, value in shared.items() if key not in ("attention_mask", "position_ids")}
        if caches is not None:
            arguments["past_key_values"] = caches[1]
        tail_mask = mask
        if k and (mask is not None or names is not None):
            seen = states.shape[1] if caches is None else caches[0].get_seq_length()
            lengths = None if names is None else [self.prompt_length(name) for name in names]
            tail_mask = with_prompt(mask, lengths, states, seen, k)
        if hasattr(self.base_layer, "rotary_emb"):
            positions = tail_positions(call.get("position_ids"), mask, states.shape[1], k, decoding)
            if positions is not None:
                arguments["position_ids"] = positions
        skip = 0 if decoding else k
        front = skip if self.trains_prompt_alone(states, split) else 0
        lean = caches is None and (read is not None or front > 0 or self.compile_tail) and self.can_be_lean(shared)
        arguments["attention_mask"] = tail_masks(
            split.tail, self.family, tail_input, tail_mask, None if caches is None else caches[1], k
        )
        output, hidden = self.run_tail(slot.prompt_layer, tail_input, arguments, read, k, skip, front, lean=lean)
        output = replace_hidden(output, hidden, self.pooled(hidden, read))
        if getattr(output, "hidden_states", None) is not None:
            tail_hidden = tuple(h[:, skip:] for h in output.hidden_states)
            output["hidden_states"] = trunk_hidden + tail_hidden
        if caches is not None:
            output["past_key_values"] = call["past_key_values"]
        return output  # type: ignore[no-any-return]

    def run_tail(
        self,
        prompt_layer: int,
        states: torch.Tensor,
        arguments: dict[str, Any],
        read: torch.Tensor | None,
        num_prompt_tokens: int,
        skip: int,
        front: int,
        *,
        lean: bool,
    ) -> tuple[Any, torch.Tensor]:
        """The tail's output, and its hidden states (batch, length or reads, hidden) of the text or the read positions.

        Args:
            prompt_layer: p.
            states: (batch, skip + length, hidden), the prompt and the trunk's states.
            arguments: what else the tail is called with.
            read: (batch, reads) positions of the text, or None for all.
            num_prompt_tokens: k, of keys that stand before the text.
            skip: positions of the prompt in this call.
            front: so many of them want a gradient, and nothing else does; 0: all may.
            lean: leave out what nobody reads.
        """
        tail = self.lean_tail(prompt_layer) if lean else self.split_at(prompt_layer).tail
        widen_buffers(tail, self.family, num_prompt_tokens)
        with self.quick_dropout(), reading(None if read is None else read + skip, front):
            output = tail(inputs_embeds=states, **arguments, return_dict=True)
        hidden: torch.Tensor = output.last_hidden_state
        if lean and read is not None and self.family.reads and not self.family.fixed_length:
            return output, hidden  # the last layer gave the read positions alone
        hidden = hidden[:, skip:]
        return output, hidden if read is None else states_at(hidden, read)

    def check_trunk(self) -> None:
        """Raise LatePromptError where the trunk has no weights to run, or hash, with."""
        if self.trunk_released:
            raise LatePromptError("the trunk's weights were released for training from kept states: restore them first")

    def pooled(self, hidden: torch.Tensor, read: torch.Tensor | None) -> torch.Tensor | None:
        return self.family.pool(self.base_layer, hidden) if read is None else None

    @property
    def _checkpoints_gradients(self) -> bool:
        last = list(self.base_layer.get_submodule(self.family.layers).children())[-1]
        return self.training and any(getattr(m, "gradient_checkpointing", False) for m in (self.base_layer, last))

    @property
    def drops_out_quickly(self) -> bool:
        """Whether dropout is the cheap one of a CPU: not where the backward pass runs a layer again by itself."""
        quick = self.training and self.placement[0].type == "cpu" and not self._checkpoints_gradients
        return quick and not self.compile_tail

    def quick_dropout(self) -> Any:
        """Cheap dropout on a CPU, unless it is open already."""
        return FastDropout() if self.drops_out_quickly and not FastDropout.is_open() else nullcontext()

    def can_be_lean(self, call: dict[str, Any]) -> bool:
        """Whether a call wants no more than its read positions, with a kernel that takes any mask."""
        config: Any = self.base_layer.config
        asked = (
            call.get(name) or getattr(config, name, False) for name in ("output_hidden_states", "output_attentions")
        )
        return not (any(asked) or self._checkpoints_gradients) and config._attn_implementation in ("eager", "sdpa")

    def _caches(self, call: dict[str, Any], prompt_layer: int, has_states: bool) -> tuple[Any, Any] | None:
        use = call.get("use_cache")
        if has_states and (use or call.get("past_key_values") is not None):
            raise LatePromptError("trunk_states skip the trunk, which then has no keys to cache; use use_cache=False")
        if use is None:
            use = bool(getattr(self.base_layer.config, "use_cache", False)) and not (self.training or has_states)
        if not self.family.causal or not (use or call.get("past_key_values") is not None):
            return None
        if call.get("past_key_values") is None:
            call["past_key_values"] = DynamicCache(config=self.config)
        return cache_views(call["past_key_values"], prompt_layer, self.num_layers)

    @staticmethod
    def trains_prompt_alone(states: torch.Tensor, split: Split) -> bool:
        """Whether of a tail's inputs and weights the prompt alone wants a gradient."""
        wanted = torch.is_grad_enabled() and not states.requires_grad
        return wanted and not any(parameter.requires_grad for parameter in split.tail.parameters())

    @staticmethod
    def has_cached_prompt(call: dict[str, Any]) -> bool:
        """Whether a call goes on from a cache that has the source and its prompt."""
        cache = call.get("past_key_values")
        return cache is not None and cache.get_seq_length() > 0

    def prompt_length(self, name: str) -> int:
        """k of an adapter; 0 without a prompt."""
        table = self.late_prompt_generators
        return int(table[name].num_prompt_tokens) if name in table else 0  # type: ignore[arg-type]

    def generate_prompt(self, name: str, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """An adapter's prompt (batch, k, hidden) from trunk states and the mask of what it may read."""
        generator = self.late_prompt_generators[name]
        # fp32 over a half-precision backbone, as PEFT keeps adapters; what torch has quantised takes floats too.
        dtype = next((p.dtype for p in generator.parameters()), torch.float32)
        return generator(states.to(dtype), mask).to(states.dtype)  # type: ignore[no-any-return]

    def _check_states(self, states: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
        width = self.config.hidden_size
        if states.ndim != 3 or states.shape[-1] != width or (like is not None and like.shape != states.shape[:2]):
            expected = f"(batch, length, {width})" if like is None else f"({like.shape[0]}, {like.shape[1]}, {width})"
            raise LatePromptError(f"trunk_states has shape {tuple(states.shape)}, expected {expected}")
        device, dtype = self.placement
        return states.to(device=device, dtype=dtype)


_TRUNK_ONLY = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids", "past_key_values", "attention_mask")
