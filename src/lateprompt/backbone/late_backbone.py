"""`LateBackbone`: trunk → prompt → tail, in the place of a Hugging Face backbone.

It takes the backbone's own arguments and gives the backbone's own output for the text positions only: every head and
loss of transformers works on it unchanged. The pass itself is `lateprompt.backbone.late_pass.late_pass`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import ModelOutput

from lateprompt.backbone.call_context import (
    BASE,
    LateCall,
    current_extras,
    first,
    gathered,
    generation_source,
    replace_hidden,
    states_at,
)
from lateprompt.backbone.families import family_of, num_layers_of
from lateprompt.backbone.kernels.cpu_mode import cpu_kernels
from lateprompt.backbone.late_pass import Prompts, late_pass, pooled, run_trunk
from lateprompt.backbone.multi_adapter import check_names, forward_mixed, rows_by_layer
from lateprompt.backbone.read_only.generation import ONE_CACHE, decode_behind, keep_prompts, with_cache
from lateprompt.backbone.read_only.rows import Behind, Read, read_rows
from lateprompt.backbone.read_only.tasks import read_tasks
from lateprompt.backbone.read_only.text import FrozenText, frozen_text
from lateprompt.backbone.read_only.views import FrozenViews
from lateprompt.backbone.text import PlainText, Text
from lateprompt.backbone.views import LateSplit, Views
from lateprompt.backbone.views import PromptSlot as PromptSlot
from lateprompt.prompts import PromptGenerator
from lateprompt.utils.errors import LatePromptError


class LateBackbone(nn.Module):
    """A Hugging Face backbone (`base_layer`) with late prompts, one named generator each.

    Subclasses say with `selected_adapter` which generator a call uses; here it is the attribute `active`. An adapter of
    `input_prompts` takes another way through the backbone (`lateprompt.peft_method.input_prompts`).

    Args:
        backbone: the module that owns embeddings and layers (`lateprompt.backbone.families.core_of`).

    Raises:
        LatePromptError: an architecture that is not in the table of families, or an encoder made a decoder.

    Example:
        >>> import torch
        >>> from peft import get_peft_model
        >>> from transformers import BertConfig, BertModel
        >>> from lateprompt import LateBackbone, LatePromptConfig
        >>> sizes = dict(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
        >>> base = BertModel(BertConfig(vocab_size=100, **sizes), add_pooling_layer=False)
        >>> model = get_peft_model(base, LatePromptConfig(prompt_layer=2, num_prompt_tokens=3, bottleneck_dim=8)).eval()
        >>> backbone = model.base_model.layer
        >>> isinstance(backbone, LateBackbone), backbone.num_layers
        (True, 4)
        >>> ids = torch.tensor([[2, 7, 9, 3]])
        >>> backbone(input_ids=ids).last_hidden_state.shape  # (batch, length, hidden), without the prompt
        torch.Size([1, 4, 16])
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        # First: what an adapter trains inside the backbone has its name here, where adapters are looked for.
        self.late_prompt_beneath = nn.ModuleDict()
        self.base_layer = backbone
        self.late_prompt_generators = nn.ModuleDict()
        self.late_prompt_heads = nn.ModuleDict()
        self.slots: dict[str, PromptSlot] = {}
        self.input_prompts: dict[str, Callable[[LateBackbone, LateCall], Any]] = {}
        self.active: str | None = None
        self.compile_tail = False
        self.trunk_offloaded = False
        self.__dict__["_frozen"] = None
        self.family = family_of(backbone)
        if getattr(backbone.config, "is_decoder", False) and not self.family.causal:
            raise LatePromptError(  # the tail's masks are those of the family
                f"is_decoder=True makes {type(backbone).__name__} a decoder, which here is an encoder; load it with "
                "is_decoder=False, or take a decoder's architecture"
            )
        self.num_layers = num_layers_of(backbone)
        self._signature = inspect.signature(type(backbone).forward)
        # Out of `_modules`: no second entry in a state dict, no parameter counted twice.
        self.__dict__["_views"] = Views(backbone)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    # -- adapters ----------------------------------------------------------------------------------------------------

    def add_prompt(self, name: str, generator: PromptGenerator | None, slot: PromptSlot) -> None:
        """Add the adapter `name`; without a generator it has a place in the stack but no prompt (a head alone)."""
        self.slots[name] = slot
        if generator is not None:
            self.late_prompt_generators[name] = generator
        if self.active is None:
            self.active = name
        self.views.forget_mode()

    def remove_prompt(self, name: str) -> None:
        """Take the adapter `name` away, with all that it has here."""
        self.slots.pop(name, None)
        self.input_prompts.pop(name, None)
        for table in (self.late_prompt_generators, self.late_prompt_heads, self.late_prompt_beneath):
            if name in table:
                del table[name]

    def selected_adapter(self) -> str | None:
        """The adapter of a call that names none; None runs the bare backbone."""
        return self.active

    # -- the backbone in parts ---------------------------------------------------------------------------------------

    @property
    def views(self) -> Views:
        """Trunk and tail at each prompt layer."""
        views: Views = self.__dict__["_views"]
        if views.backbone is not self.base_layer:  # it has been put in another module's place (FSDP does)
            views = self.__dict__["_views"] = Views(self.base_layer)
        return views

    @property
    def placement(self) -> tuple[torch.device, torch.dtype]:
        """Device and dtype of the tail's last layer."""
        return self.views.placement

    @property
    def frozen(self) -> FrozenViews:
        """The backbone without adapters of ours, in eval mode."""
        frozen: FrozenViews | None = self.__dict__["_frozen"]
        if frozen is None or frozen.backbone is not self.base_layer or frozen.is_stale:
            frozen = self.__dict__["_frozen"] = FrozenViews(self.base_layer, self.tuned_modules())
        return frozen

    def tuned_modules(self) -> Sequence[nn.Module]:
        """Modules of ours in the backbone that stand there for their `get_base_layer()`."""
        return ()

    def split_at(self, prompt_layer: int) -> LateSplit:
        """Trunk and tail for a prompt layer, built once and again when the backbone has changed."""
        return self.views.split_at(prompt_layer)

    def late_mode(self, prompt_layer: int) -> LateSplit:
        """The split at a prompt layer, its trunk in eval mode and its tail in this module's."""
        return self.views.enter(PromptSlot(prompt_layer), self.training)

    def train(self, mode: bool = True) -> LateBackbone:
        super().train(mode)
        self.views.forget_mode()
        return self

    def run_trunk(self, prompt_layer: int, arguments: dict[str, Any]) -> torch.Tensor:
        """The trunk's states (batch, length, hidden) of a call's arguments, without gradient."""
        text = PlainText(LateCall({key: arguments.get(key) for key in _INPUTS}), self.family)
        with torch.no_grad():
            return run_trunk(self.late_mode(prompt_layer), text)[0]

    def check_trunk(self) -> None:
        """Raise LatePromptError where the trunk has no weights to run, or hash, with."""
        if self.trunk_offloaded:
            raise LatePromptError(
                "the trunk's weights are offloaded while cached states are trained from: restore them first"
            )

    # -- calls -------------------------------------------------------------------------------------------------------

    @property
    def drops_out_quickly(self) -> bool:
        """Whether dropout is the cheap one of a CPU: not where the backward pass runs a layer again by itself."""
        quick = self.training and self.placement[0].type == "cpu" and not self.views.checkpoints_gradients
        return quick and not self.compile_tail

    def kernels(self) -> AbstractContextManager[Any]:
        """The context in which a CPU computes a pass the fast way; it does nothing elsewhere."""
        return cpu_kernels(*self.placement, dropout=self.drops_out_quickly)

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
        call, names = self._call_of(*args, **kwargs)
        if call.trunk_states is None:
            self.check_trunk()
        if names is not None:
            others = {*self.input_prompts, *self.late_prompt_beneath}
            check_names(names, len(call.text), self.slots, [name for name in self.slots if name in others])
        selected = None if names is not None else self.selected_adapter()
        bare = selected is None if names is None else all(name == BASE for name in names)
        with self.kernels():
            if bare and call.trunk_states is None:
                return self._run_bare(call)
            self.check_call()
            return_dict = call.arguments.pop("return_dict", None)
            call.check(self.config.hidden_size)
            output = self._run(selected, names, call)
        return output if first(return_dict, getattr(self.config, "return_dict", True)) else output.to_tuple()

    def check_call(self) -> None:
        """Raise LatePromptError where this module cannot compute what it is asked for: see the messages."""
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise LatePromptError(
                "a late prompt cannot be traced by torch.jit.trace (nor by torch.onnx.export(dynamo=False)): the trace "
                "would keep one text's lengths for all; use torch.export.export or torch.compile"
            )

    def _call_of(self, *args: Any, **kwargs: Any) -> tuple[LateCall, list[str] | None]:
        """The call, and each row's adapter if it names them."""
        bound = self._signature.bind_partial(self, *args)
        given = {**{k: v for k, v in bound.arguments.items() if k not in ("self", "kwargs")}, **kwargs}
        extras = current_extras()
        source_mask = first(given.pop("source_mask", None), extras.source_mask)
        trunk_states = first(given.pop("trunk_states", None), extras.trunk_states)
        names = first(given.pop("adapter_names", None), extras.adapter_names)
        read, anchor = given.pop("read", None), first(given.pop("anchor", None), extras.anchor)
        read = read[:, None] if read is not None and read.ndim == 1 else read
        anchor = None if anchor is None else anchor.reshape(-1, 1)
        call = LateCall(given, source_mask, trunk_states, read, anchor, given.pop("text_keys", None))
        if extras.source_length is not None and not call.cached_length:
            mask = generation_source(source_mask, given.get("attention_mask"), call.text, extras.source_length)
            call = replace(call, source_mask=mask)
        return call, None if names is None else list(names)

    def _run(self, selected: str | None, names: list[str] | None, call: LateCall) -> Any:
        if names is not None:
            groups = rows_by_layer(names, self.slots)
            return forward_mixed(self.views, groups, names, call, self._run_rows)
        if selected is None:
            raise LatePromptError("trunk_states were given, but no late prompt is active: they are states at no layer")
        if selected in self.input_prompts:
            return self.input_prompts[selected](self, call)
        slot = self.slots[selected]
        if slot.read_only and selected in self.late_prompt_generators:
            return self._run_read_only(selected, call)
        return self.run_text(
            selected, self._text(selected, call), call.states_after(slot.prompt_layer), call.read, anchor=call.anchor
        )

    def _run_bare(self, call: LateCall) -> Any:
        output = self.views.leave(self.training)(**call.arguments)
        return output if call.read is None else gathered(output, call.read)

    def _run_rows(self, names: Sequence[str], call: LateCall) -> ModelOutput:
        """Rows of several adapters whose prompts all enter after the same layer, or which all have none."""
        if any(name in self.slots and self.slots[name].read_only for name in names):
            return self._run_read_only(names, call)
        if names[0] not in self.slots:
            return self._run_bare(replace(call, arguments={**call.arguments, "return_dict": True}))  # type: ignore[no-any-return]
        states = call.states_after(self.slots[names[0]].prompt_layer)
        return self.run_text(names[0], self._text(names[0], call), states, call.read, names=names, anchor=call.anchor)

    # -- read-only prompts -------------------------------------------------------------------------------------------

    def read(
        self, names: str | Sequence[str], call: LateCall, *, whole: bool = False, behind: Behind | None = None
    ) -> Read:
        """Let read-only prompts read their texts: of one adapter for all rows, or of each row's own.

        Args:
            names: the adapter, or one a row.
            call: the call.
            whole: whether the frozen model's own output is wanted too.
            behind: what stands behind the sources and is not in the call's text.

        Raises:
            LatePromptError: something else is trained in the backbone, which would get no gradient.
        """
        self._check_trained()
        slots = {name: self.slots[name] for name in ([names] if isinstance(names, str) else set(names) - {BASE})}
        generators = {name: self.late_prompt_generators[name] for name in slots if name in self.late_prompt_generators}
        return read_rows(
            self.views,
            self.frozen,
            slots,
            generators,
            names,
            call,
            training=self.training,
            whole=whole,
            behind=behind,
        )

    def _check_trained(self) -> None:
        """Raise LatePromptError while something in the text's states is trained: they are computed without gradient."""
        if not (self.training and torch.is_grad_enabled()):
            return
        ours = {id(parameter) for parameter in self.late_prompt_beneath.parameters()}
        for name, parameter in self.base_layer.named_parameters():
            if parameter.requires_grad and id(parameter) not in ours:
                raise LatePromptError(
                    f"{name!r} of the backbone is trained, but a read-only prompt reads the frozen model's states, "
                    "which pass no gradient on; freeze it (requires_grad_(False)), give LoRA as the config's tuner, or "
                    "use read_only=False"
                )

    def read_call(self, name: str, *, whole: bool = False, behind: Behind | None = None, **arguments: Any) -> Read:
        """`read` of a call's arguments, as `forward` takes them, with the CPU's fast kernels."""
        call = self._checked_call(arguments)
        with self.kernels():
            return self.read(name, call, whole=whole, behind=behind)

    def _checked_call(self, arguments: dict[str, Any]) -> LateCall:
        """The call of these arguments, which `forward` would take; LatePromptError where they do not fit."""
        call, _ = self._call_of(**arguments)
        if call.trunk_states is None:
            self.check_trunk()
        call.check(self.config.hidden_size)
        return call

    def frozen_text(
        self, prompt_layer: int, *, whole: bool = False, keys: bool = False, **arguments: Any
    ) -> FrozenText:
        """What the frozen model computes of a call's texts, from the states after `prompt_layer` layers on.

        Args:
            prompt_layer: the lowest layer whose states are wanted.
            whole: whether the frozen model's own output is wanted too.
            keys: whether to keep keys and values that are computed on the way, for a great many queries.
            arguments: the call's, as `forward` takes them.
        """
        call = self._checked_call(arguments)
        with self.kernels():
            return frozen_text(self.frozen, call, prompt_layer, whole=whole, keys=keys)

    def read_tasks(
        self, names: Sequence[str], text: FrozenText, anchors: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Let read-only prompts of several adapters read the same texts in one pass.

        A tail tuner that is active lies on the path of all of them.

        Args:
            names: the adapters.
            text: the texts, with states from the lowest of their prompt layers on (`frozen_text`).
            anchors: of an adapter, the positions (batch,) that its prompt stands for, where they are not `text.anchor`.

        Returns:
            By adapter the mean (batch, hidden) of the backbone's output for its prompt.
        """
        with self.kernels():
            return read_tasks(
                self.views,
                self.frozen,
                self.slots,
                {name: self.late_prompt_generators[name] for name in names},
                names,
                text,
                anchors,
                training=self.training,
            )

    def _run_read_only(self, names: str | Sequence[str], call: LateCall) -> ModelOutput:
        """The frozen model's output with each row's prompt at its anchor."""
        if call.cached_length:
            generators = dict(self.late_prompt_generators.items())
            return decode_behind(self.views, self.slots, generators, names, call, self.training)
        wants_cache = bool(call.arguments.get("use_cache")) or call.arguments.get("past_key_values") is not None
        call, cache = with_cache(call, self.views, training=self.training)
        at_anchor = call.read is not None and call.anchor is not None and _same(call.read, call.anchor)
        if at_anchor and cache is None and (isinstance(names, str) or BASE not in names):
            read = self.read(names, call)
            return BaseModelOutputWithPooling(last_hidden_state=read.by_row(read.mean)[:, None])
        read = self.read(names, call, whole=True)
        if cache is not None and not keep_prompts(cache, read):
            if wants_cache:
                raise LatePromptError(f"adapters {names!r} cannot begin one KV cache; {ONE_CACHE}")
            cache = None
        hidden = read.output()
        hidden = hidden if call.read is None else states_at(hidden, call.read)
        kind, found = BaseModelOutputWithPooling, {}
        if read.text.output is not None:
            kind, found = type(read.text.output), dict(read.text.output)
        if not first(call.arguments.get("output_hidden_states"), self.config.output_hidden_states):
            found.pop("hidden_states", None)
        found.pop("past_key_values", None)
        output = kind(**{**found, "last_hidden_state": hidden})
        output = replace_hidden(output, hidden, pooled(self.views, hidden) if call.read is None else None)
        if cache is not None:
            output["past_key_values"] = cache
        return output  # type: ignore[no-any-return]

    def _text(self, name: str, call: LateCall) -> PlainText:
        return PlainText.of(call, self.views, self.slots[name].prompt_layer, training=self.training)

    def run_text(
        self,
        name: str,
        text: Text,
        trunk_states: torch.Tensor | None,
        read: torch.Tensor | None,
        *,
        names: Sequence[str] | None = None,
        anchor: torch.Tensor | None = None,
    ) -> ModelOutput:
        """`late_pass` of a text with the prompt of the adapter `name`, or of each row's own among `names`.

        `anchor` (batch, 1) is where a prompt starts from, if it does (`PromptSlot.start`).
        """
        used = sorted({name, *(names or ())})
        generators = {key: self.late_prompt_generators[key] for key in used if key in self.late_prompt_generators}
        return late_pass(
            self.views,
            self.slots[name],
            Prompts(generators, names, self.slots, None if anchor is None else anchor[:, 0]),
            text,
            trunk_states,
            read,
            training=self.training,
            compiled=self.compile_tail,
        )


def _same(read: torch.Tensor, anchor: torch.Tensor) -> bool:
    """Whether both are the same positions, told without waiting for a GPU."""
    return read.shape == anchor.shape and read.data_ptr() == anchor.data_ptr()


_INPUTS = ("input_ids", "inputs_embeds", "token_type_ids", "position_ids", "attention_mask")
