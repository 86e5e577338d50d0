"""`LatePromptLayer`: the wrapped backbone as PEFT sees it, with the parts of each adapter."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lateprompt.backbone.families import hidden_dropout_of
from lateprompt.backbone.late_backbone import LateBackbone
from lateprompt.backbone.views import PromptSlot
from lateprompt.peft_method.adapter_files import check_weights
from lateprompt.peft_method.config import NO_PROMPT, SENTENCE, LatePromptConfig
from lateprompt.peft_method.input_prompts import PromptLearning, SentenceGenerator, SentencePrompt
from lateprompt.peft_method.sizes import Room, check_tuner
from lateprompt.peft_method.tail_tuner import FULL, PROMPT_LEARNING, TailTuner
from lateprompt.prompts import FixedPrompt, GeneratorSpec, build_generator, parameters_of
from lateprompt.utils.errors import LatePromptError


class LatePromptLayer(LateBackbone, BaseTunerLayer):
    """A backbone with late prompts as a PEFT layer: adapters by name, one of them active."""

    adapter_layer_names = ("late_prompt_generators", "late_prompt_heads", "late_prompt_beneath")
    other_param_names = ()

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__(backbone)
        self.__dict__["tail_tuners"] = {}
        self.register_load_state_dict_pre_hook(check_weights)  # type: ignore[no-untyped-call]

    def tuned_modules(self) -> list[nn.Module]:
        return [module for tuner in self.tail_tuners.values() for module in tuner.layers]

    def selected_adapter(self) -> str | None:
        if self.disable_adapters:
            return None
        names = self.active_adapters
        if len(names) > 1:
            raise LatePromptError(
                f"{len(names)} late prompts are active ({', '.join(names)}); activate one, or use adapter_names"
            )
        return names[0] if names and names[0] in self.slots else None

    def update_layer(self, name: str, config: LatePromptConfig) -> None:
        """Add the adapter `name` with its generator and head (config's `prompt_layer` is an int by now).

        Raises:
            LatePromptError: an adapter of that name is there, sizes that this model has no room for, or a tuner that
                cannot be put on its layers.
        """
        if name in self.slots:
            raise LatePromptError(f"adapter {name!r} is there already; choose another name, or delete it first")
        self._check_sizes(config)
        try:
            self._add_adapter(name, config)
        except BaseException:  # interrupted by Ctrl-C too
            self._forget(name)
            raise

    def _check_sizes(self, config: LatePromptConfig) -> None:
        room, base = Room(self.base_layer), cast(Any, self.base_layer)
        k, m = config.num_prompt_tokens, config.bottleneck_dim
        if config.generator != NO_PROMPT:
            room.check_prompt("num_prompt_tokens", k)
        if config.generator == SENTENCE:
            room.check("bottleneck_dim", m, lambda size: size * (1 + k) * room.width // config.phm_n)
        elif config.generator != NO_PROMPT:
            room.check("num_prompt_tokens", k, partial(parameters_of, config.generator, room.width, 1))
            room.check("bottleneck_dim", m, lambda size: parameters_of(config.generator, room.width, size, k))
        if config.head_labels is not None:
            width = int(getattr(base.config, self.family.output_width)) * (2 if config.read_only else 1)
            room.check("head_labels", config.head_labels, lambda size: size * (width + 1))
        if config.tuner is not None:
            check_tuner(config.tuner, room, self.num_layers - (int(config.prompt_layer) if config.is_late else 0))

    def _add_adapter(self, name: str, config: LatePromptConfig) -> None:
        base: Any = self.base_layer
        width = int(base.config.hidden_size)
        rate = config.prompt_dropout
        generator = None
        p = int(config.prompt_layer)
        if config.generator == SENTENCE:
            self._add_sentence_prompt(name, config)
        elif config.generator != NO_PROMPT:
            spec = GeneratorSpec(
                hidden_size=width,
                num_prompt_tokens=config.num_prompt_tokens,
                bottleneck_dim=config.bottleneck_dim,
                dropout=hidden_dropout_of(base.config, self.family) if rate is None else rate,
                reads_last=self.family.causal,
                pool_last_source=config.pool_last_source,
                init_std=float(getattr(base.config, "initializer_range", 0.02)),
            )
            generator = build_generator(config.generator, spec)
            if isinstance(generator, FixedPrompt) and config.fixed_init == "vocabulary":
                words = base.get_input_embeddings().weight
                if words.shape[-1] == width and words.device.type != "meta":
                    generator.init_from_vocabulary(words)
        if generator is not None and config.starts_at_zero:
            generator.start_at_zero()
        slot = PromptSlot(p, config.trunk_dropout, config.read_only, "none" if generator is None else config.start)
        self.add_prompt(name, generator, slot)
        if config.tuner is not None:
            self._add_tuner(name, config.tuner, p, late=config.is_late)
        if config.head_labels is not None:
            reads = 2 if config.read_only else 1  # the prompt, and the frozen model's own pooled state
            head = nn.Linear(reads * int(getattr(base.config, self.family.output_width)), config.head_labels)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            self.late_prompt_heads[name] = head
        device, dtype = self.placement
        for table in (self.late_prompt_generators, self.late_prompt_heads):
            if name in table and not any(p.device.type == "meta" for p in table[name].parameters()):
                table[name].to(device=device, dtype=dtype)
        for table in (self.late_prompt_generators, self.late_prompt_heads, self.late_prompt_beneath):
            if name in table:  # new modules are made in training mode, and would drop out in a model that predicts
                table[name].train(self.training)

    def _add_sentence_prompt(self, name: str, config: LatePromptConfig) -> None:
        base: Any = self.base_layer
        embedding_width = int(base.get_input_embeddings().weight.shape[-1])
        rate = hidden_dropout_of(base.config, self.family) if config.prompt_dropout is None else config.prompt_dropout
        generator = SentenceGenerator(
            int(getattr(base.config, self.family.output_width)),
            embedding_width,
            config.num_prompt_tokens,
            config.bottleneck_dim,
            config.phm_n,
            rate,
        )
        self.input_prompts[name] = SentencePrompt(generator)
        self.late_prompt_generators[name] = generator

    def _add_tuner(self, name: str, options: dict[str, Any], prompt_layer: int, *, late: bool) -> None:
        if any(parameter.device.type == "meta" for parameter in self.base_layer.parameters()):
            raise LatePromptError("a tail tuner needs the weights in memory: they are on the meta device")
        full = any(tuner.full for tuner in self.tail_tuners.values())
        if full or (self.tail_tuners and options["peft_type"] == FULL):
            raise LatePromptError(
                f"adapter {name!r} cannot be added: where the backbone's own weights are trained ({FULL}), no other "
                "adapter can have a tuner; use a model of its own"
            )
        if options["peft_type"] in PROMPT_LEARNING:
            prompt = PromptLearning(self, name, options, prompt_layer, late=late)
            self.input_prompts[name] = prompt
            self.late_prompt_beneath[name] = prompt.module
            return
        tuner = TailTuner(self.base_layer, name, options, prompt_layer, late=late)
        self.tail_tuners[name] = tuner
        self.late_prompt_beneath[name] = tuner.parts
        tuner.activate(self.active_adapters)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """As PEFT's; tail tuners follow."""
        for tuner in self.tail_tuners.values():
            tuner.activate([adapter_names] if isinstance(adapter_names, str) else adapter_names)
        super().set_adapter(adapter_names, inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """As PEFT's; tail tuners follow."""
        for tuner in self.tail_tuners.values():
            tuner.enable(enabled)
        super().enable_adapters(enabled)

    def check_call(self) -> None:
        super().check_call()
        for tuner in self.tail_tuners.values():
            maps: Any = getattr(tuner.layers[0], "lora_A", {}) if tuner.layers else {}
            if any(callable(getattr(part, "weight", None)) for part in maps.values()):
                raise LatePromptError(
                    "quantize_dynamic has quantised LoRA's own maps, which PEFT cannot compute with; quantise the base "
                    "model first, and put the adapter on it afterwards"
                )

    def unwrap_tuners(self) -> None:
        """Give the backbone its own modules back."""
        for tuner in self.tail_tuners.values():
            tuner.unwrap()
        self.tail_tuners.clear()

    def delete_adapter(self, adapter_name: str) -> None:
        self._forget(adapter_name)  # first: PEFT then chooses the next active one from what is left
        super().delete_adapter(adapter_name)

    def _forget(self, name: str) -> None:
        tuner = self.tail_tuners.pop(name, None)
        if tuner is not None:
            tuner.delete()
        self.remove_prompt(name)

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.slots)  # an adapter may have a head and no generator, or the other way round
