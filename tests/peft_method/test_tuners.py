"""BitFit and adapters as PEFT methods, alone and beneath a late prompt."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file
from test_peft import CAUSAL, HEADLESS, MASKED, SEQUENCE, TASK, first_output, late_config, plain_batch, shake, trainable
from tiny_models import CONFIGS, ENCODERS, LAYERS, WIDTH, tiny_model
from torch import nn

from lateprompt import FAMILIES, AdapterConfig, BitFitConfig, Family, register_family
from lateprompt.backbone.families import core_of
from lateprompt.peft_method.extra.bitfit import BitFitLayer
from lateprompt.peft_method.extra.houlsby import AdapterLayer

D, F, M = WIDTH, 64, 8  # hidden, inner, bottleneck widths
BERT = 7 * D + F
BIASES = {  # a layer's biases, how many different layers, the biases outside of them (norms, projections, poolers)
    "bert": (BERT, LAYERS, 2 * D),
    "roberta": (BERT, LAYERS, 2 * D),
    "xlm-roberta": (BERT, LAYERS, 2 * D),
    "camembert": (BERT, LAYERS, 2 * D),
    "mpnet": (BERT, LAYERS, 2 * D),
    "electra": (BERT, LAYERS, 16 + D),
    "distilbert": (BERT, LAYERS, D),
    "deberta-v2": (BERT, LAYERS, 4 * D),
    "albert": (BERT, 2, 16 + 2 * D),
    "gpt2": (11 * D, LAYERS, D),
    "gpt_neo": (4 * D + F, LAYERS, D),
    "gpt_neox": (BERT, LAYERS, D),
    "opt": (BERT, LAYERS, D),
    "qwen2": (2 * D, LAYERS, 0),
}
UNBIASED = sorted(set(CONFIGS) - set(BIASES))
ADAPTER = 2 * (2 * D * M + M + D)
HEADED = {name: MASKED if name in ENCODERS else CAUSAL for name in CONFIGS}
PART = {BitFitConfig: "bitfit_", AdapterConfig: "houlsby_"}
LAYER = {BitFitConfig: BitFitLayer, AdapterConfig: AdapterLayer}
CASES = [
    *((BitFitConfig, name, auto) for name in BIASES for auto in (HEADLESS, HEADED[name])),
    *((AdapterConfig, name, auto) for name in CONFIGS for auto in (HEADLESS, HEADED[name])),
]
FEW = [
    (BitFitConfig, "roberta", MASKED),
    (BitFitConfig, "gpt2", CAUSAL),
    (BitFitConfig, "albert", HEADLESS),
    (BitFitConfig, "opt", CAUSAL),
    (AdapterConfig, "roberta", MASKED),
    (AdapterConfig, "gpt2", CAUSAL),
    (AdapterConfig, "albert", HEADLESS),
    (AdapterConfig, "llama", HEADLESS),
]


def biased_model(name, auto=HEADLESS, **overrides):
    """A tiny model whose biases aren't the zeros they start as, which hide errors of sums."""
    model, random = tiny_model(name, auto, **overrides), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def tuner_config(kind, auto=MASKED, **changes):
    sizes = {"bottleneck_dim": M} if kind is AdapterConfig else {}
    return kind(task_type=TASK[auto], **{**sizes, **changes})


def tuned(kind, name, auto=MASKED, **changes):
    return shake(get_peft_model(biased_model(name, auto), tuner_config(kind, auto, **changes)), 3, PART[kind]).eval()


def groups_of(name):
    return 2 if name == "albert" else LAYERS


def wrapped_layers(model, kind):
    """Numbers of the layers with wrapped modules in them, None for those outside the layers."""
    core = core_of(model.get_base_model())
    stack = core.get_submodule(FAMILIES[core.config.model_type].layers)
    number = {id(m): int(i) for i, layer in stack.named_children() for m in layer.modules()}
    return {number.get(id(m)) for m in core.modules() if isinstance(m, LAYER[kind])}


# -- every family ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BIASES)
def test_bitfit_trains_every_bias_of_the_backbone(name):
    base = biased_model(name)
    biases = {n: p for n, p in core_of(base).named_parameters() if n.endswith("bias")}
    model = get_peft_model(base, tuner_config(BitFitConfig, HEADLESS))
    layer, layers, outside = BIASES[name]
    assert model.get_nb_trainable_parameters()[0] == layers * layer + outside
    assert sum(p.numel() for p in biases.values()) == layers * layer + outside
    wrapped = {id(m.base_layer.bias) for m in model.modules() if isinstance(m, BitFitLayer)}
    assert wrapped == {id(p) for p in biases.values()}
    assert all("bitfit_delta.default" in n for n in trainable(model))


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (BitFitConfig(), 271_360),
        (AdapterConfig(), 6_343_680),
        (AdapterConfig(drop_layers=12), 3_171_840),
    ],
)
def test_counts_of_roberta_large(config, count):
    shape = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
    with torch.device("meta"):
        model = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**shape))
        assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == count


@pytest.mark.parametrize("name", UNBIASED)
def test_bitfit_gives_linear_maps_a_bias_where_there_is_none(name):
    base, batch = biased_model(name), plain_batch(name)
    plain = first_output(base, batch)
    layers = core_of(base).get_submodule(FAMILIES[name].layers)
    maps = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    model = get_peft_model(base, tuner_config(BitFitConfig, HEADLESS)).eval()
    wrapped = [module for module in model.modules() if isinstance(module, BitFitLayer)]
    assert {id(m.base_layer) for m in wrapped} == {id(m) for m in maps}
    assert model.get_nb_trainable_parameters()[0] == sum(m.out_features for m in maps)
    assert torch.equal(first_output(model, batch), plain)
    shake(model, 3, "bitfit_")
    changed = first_output(model, batch)
    assert not torch.allclose(changed, plain, atol=1e-3)
    by_hand = biased_model(name)
    with torch.no_grad():
        for module, own in zip(
            wrapped,
            [m for m in core_of(by_hand).get_submodule(FAMILIES[name].layers).modules() if isinstance(m, nn.Linear)],
            strict=True,
        ):
            own.bias = nn.Parameter(module.bitfit_delta["default"].clone())
    assert torch.equal(first_output(by_hand, batch), changed)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="has no biases, so a saved model would lose"):
            merge()
    assert torch.equal(first_output(model.unload(), batch), plain)


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_go_behind_both_outputs_of_every_layer(name):
    model = get_peft_model(biased_model(name), tuner_config(AdapterConfig, HEADLESS))
    assert model.get_nb_trainable_parameters()[0] == groups_of(name) * ADAPTER
    assert all("houlsby_" in n for n in trainable(model))
    core = core_of(model.get_base_model())
    for layer in core.get_submodule(FAMILIES[name].layers).children():
        places = [path for path, module in layer.named_modules() if isinstance(module, AdapterLayer)]
        assert set(places) == set(FAMILIES[name].adapters)
        widths = {layer.get_submodule(path).houlsby_up["default"].out_features for path in places}
        assert len(places) == 2
        assert widths == {D}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "auto"), CASES)
def test_life_cycle(kind, name, auto, tmp_path):
    base, batch = biased_model(name, auto), plain_batch(name)
    bare, keys = first_output(base, batch), list(base.state_dict())
    model = get_peft_model(base, tuner_config(kind, auto)).eval()
    model.print_trainable_parameters()
    assert torch.equal(first_output(model, batch), bare)  # nothing changes at the start
    shake(model, 3, PART[kind])
    output = first_output(model, batch)
    assert not torch.allclose(output, bare, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), bare)
    assert torch.equal(first_output(model, batch), output)

    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(trainable(model))
    assert all(PART[kind] in key and "default" not in key for key in saved)
    for low in (False, True):
        again = PeftModel.from_pretrained(
            biased_model(name, auto), tmp_path, adapter_name="other", low_cpu_mem_usage=low
        ).eval()
        assert not trainable(again)
        assert torch.equal(first_output(again, batch), output)
    back = model.unload()
    assert back is base
    assert torch.equal(first_output(base, batch), bare)
    assert list(base.state_dict()) == keys


@pytest.mark.parametrize(("kind", "name", "auto"), FEW)
def test_training_changes_the_tuner_alone(kind, name, auto):
    model = tuned(kind, name, auto).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.1)
    output = model(**plain_batch(name))[0]
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    if kind is AdapterConfig:
        assert changed == set(trainable(model))
    else:  # keys' biases shift all scores of a softmax alike, poolers are not read, heads do not read all norms
        assert len(changed) > len(trainable(model)) // 2
    assert changed <= set(trainable(model))
    assert all(PART[kind] in n for n in changed)


@pytest.mark.parametrize("name", BIASES)
def test_bitfit_is_the_model_with_other_biases(name):
    by_hand = biased_model(name, HEADED[name])
    model = tuned(BitFitConfig, name, HEADED[name])
    with torch.no_grad():
        for path, module in model.get_base_model().named_modules():
            if isinstance(module, BitFitLayer):
                by_hand.get_submodule(path).bias += module.bitfit_delta["default"]
    batch = plain_batch(name)
    assert torch.equal(first_output(model, batch), first_output(by_hand, batch))


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_is_a_bottleneck_on_what_its_projection_gives(name):
    by_hand = biased_model(name, HEADED[name])
    model = tuned(AdapterConfig, name, HEADED[name], activation="relu")
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, AdapterLayer):
            down, up = module.houlsby_down["default"], module.houlsby_up["default"]

            def bottleneck(module, args, hidden, down=down, up=up):
                inner = (hidden @ down.weight.T + down.bias).clamp(min=0)
                return hidden + inner @ up.weight.T + up.bias

            by_hand.get_submodule(path).register_forward_hook(bottleneck)
    batch = plain_batch(name)
    expected = first_output(by_hand, batch)
    torch.testing.assert_close(first_output(model, batch), expected, atol=1e-4, rtol=1e-4)


def test_how_an_adapter_starts():
    torch.manual_seed(0)
    model = get_peft_model(biased_model("bert"), AdapterConfig(bottleneck_dim=200, init_std=0.05))
    for layer in layers_in(model):
        down, up = layer.houlsby_down["default"], layer.houlsby_up["default"]
        assert down.weight.abs().max() <= 0.1
        assert down.weight.std().item() == pytest.approx(0.05 * 0.88, rel=0.05)  # what truncation leaves of it
        assert not any(p.any() for p in (down.bias, up.weight, up.bias))


def test_dropout_in_an_adapter():
    model = tuned(AdapterConfig, "bert", HEADLESS, dropout=0.5)
    batch = plain_batch("bert")
    assert torch.equal(first_output(model, batch), first_output(tuned(AdapterConfig, "bert", HEADLESS), batch))
    layer, x = layers_in(model)[0], torch.randn(2, 3, D)
    assert torch.equal(layer(x), layer(x))  # a backbone in eval mode gets its adapters in eval mode
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    assert not get_peft_model(biased_model("bert"), tuner_config(AdapterConfig, dropout=0.5)).base_model.model.training
    fresh = layers_in(get_peft_model(biased_model("bert"), tuner_config(AdapterConfig, dropout=0.5)))
    assert not any(m.training for layer in fresh for m in layer.houlsby_activation.modules())


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
def test_adapters_by_row_are_refused(kind):
    model = tuned(kind, "bert")
    with pytest.raises(ValueError, match="no adapter_names"):
        model(**plain_batch("bert"), adapter_names=["default"] * 3)


@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_bitfit_adds_to_biases_and_not_to_activations(name):
    model, batch = tuned(BitFitConfig, name, HEADED[name]), plain_batch(name)

    class Additions(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.by_rank = {}

        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            result = operator(*args, **(kwargs or {}))
            if operator is torch.ops.aten.add.Tensor:
                self.by_rank[result.ndim] = self.by_rank.get(result.ndim, 0) + 1
            return result

    counts = []
    for each in (model, biased_model(name, HEADED[name])):
        with Additions() as mode:
            first_output(each, batch)
        counts.append(mode.by_rank)
    layers = sum(isinstance(m, BitFitLayer) for m in model.modules())
    assert counts[0].pop(1) - counts[1].pop(1, 0) == layers
    assert counts[0] == counts[1]


def test_bitfit_where_a_module_does_more_than_its_class():
    """Hooks on a module still run: the difference then goes to its output."""
    model, batch = tuned(BitFitConfig, "deberta-v2"), plain_batch("deberta-v2")
    output = first_output(model, batch)
    calls = []
    for module in model.modules():
        if isinstance(module, BitFitLayer):
            module.base_layer.register_forward_hook(lambda module, args, out: calls.append(type(module)))
    torch.testing.assert_close(first_output(model, batch), output)
    assert {t.__name__ for t in calls} == {"Linear", "LayerNorm", "Conv1d"}


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_backbones(kind, dtype):
    base, batch = biased_model("roberta", MASKED).to(dtype), plain_batch("roberta")
    bare = first_output(base, batch)
    model = get_peft_model(base, tuner_config(kind)).eval()
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    assert torch.equal(first_output(model, batch), bare)
    output = first_output(shake(model, 3, PART[kind]), batch)
    assert output.dtype == dtype
    assert not torch.allclose(output, bare, atol=1e-2)


# -- several adapters, merging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "auto"), FEW)
def test_several_adapters(kind, name, auto, tmp_path):
    model, batch = tuned(kind, name, auto), plain_batch(name)
    tail = list(range(LAYERS // 2, LAYERS))
    more = {"bottleneck_dim": 3, "activation": "relu"} if kind is AdapterConfig else {}
    model.add_adapter("tail", tuner_config(kind, auto, layers_to_transform=tail, **more))
    shake(model, 4, ".tail")
    model.eval()
    outputs = {}
    for adapter in ("default", "tail", "default"):
        model.set_adapter(adapter)
        assert all(f".{adapter}" in n for n in trainable(model))
        output = first_output(model, batch)
        assert torch.equal(outputs.setdefault(adapter, output), output)
    assert not torch.allclose(outputs["default"], outputs["tail"], atol=1e-3)
    alone = shake(get_peft_model(biased_model(name, auto), model.peft_config["tail"], adapter_name="tail"), 4, ".tail")
    assert torch.equal(first_output(alone.eval(), batch), outputs["tail"])

    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(biased_model(name, auto), tmp_path / "tail").eval()
    assert torch.equal(first_output(again, batch), outputs["tail"])
    again.load_adapter(tmp_path, "whole")
    again.set_adapter("whole")
    assert torch.equal(first_output(again, batch), outputs["default"])

    model.set_adapter("tail")
    model.delete_adapter("default")
    assert not any(".default" in key for key in model.state_dict())
    assert torch.equal(first_output(model, batch), outputs["tail"])
    with pytest.raises(ValueError, match="default"):
        model.delete_adapter("default")


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
def test_two_active_adapters_are_added_up(kind):
    model, batch = tuned(kind, "bert", HEADLESS), plain_batch("bert")
    model.add_adapter("second", tuner_config(kind, HEADLESS))
    shake(model, 4, ".second").eval()
    layer = next(m for m in model.modules() if isinstance(m, LAYER[kind]))
    x = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(0))
    base, changes = layer.base_layer(x), []
    for names in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(names)
        changes.append(layer(x) - base)
    torch.testing.assert_close(changes[0] + changes[1], changes[2])
    model.base_model.set_adapter("default")
    assert first_output(model, batch).isfinite().all()


@pytest.mark.parametrize(
    ("name", "auto"), [("roberta", MASKED), ("gpt2", CAUSAL), ("deberta-v2", HEADLESS), ("opt", CAUSAL)]
)
def test_bitfit_merges_and_unmerges_to_the_bit(name, auto):
    base, batch = biased_model(name, auto), plain_batch(name)
    bare, weights = first_output(base, batch), {k: v.clone() for k, v in base.state_dict().items()}
    model = shake(get_peft_model(base, tuner_config(BitFitConfig, auto)), 3, "bitfit_").eval()
    model.add_adapter("second", tuner_config(BitFitConfig, auto))
    shake(model, 4, ".second")
    model.base_model.set_adapter(["default", "second"])
    output = first_output(model, batch)
    model.merge_adapter()
    assert all(m.merged for m in model.modules() if isinstance(m, BitFitLayer))
    assert torch.equal(first_output(model, batch), output)
    with pytest.raises(ValueError, match="merged"):
        model.delete_adapter("default")
    model.unmerge_adapter()
    assert torch.equal(first_output(model, batch), output)
    model.merge_adapter(["second"])
    model.merge_adapter(["default"], safe_merge=True)  # what is merged already stays
    torch.testing.assert_close(first_output(model, batch), output)
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), bare)
    merged = model.merge_and_unload()
    assert merged is base
    assert torch.equal(first_output(merged, batch), output)
    assert merged.state_dict().keys() == weights.keys()
    changed = {k for k, v in merged.state_dict().items() if not torch.equal(v, weights[k])}
    assert changed
    assert all(k.endswith("bias") for k in changed)


def test_a_merge_that_is_not_finite():
    model = tuned(BitFitConfig, "bert")
    next(iter(trainable(model).values())).data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)


def test_adapters_cannot_be_merged():
    model = tuned(AdapterConfig, "bert")
    for merge in (model.merge_adapter, model.merge_and_unload, next(iter(layers_in(model))).merge):
        with pytest.raises(ValueError, match="non-linear map"):
            merge()


def layers_in(model):
    return [m for m in model.modules() if isinstance(m, AdapterLayer)]


# -- choice of modules and layers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name", "auto"), FEW)
def test_layers_to_transform(kind, name, auto):
    tail = [2, 3]
    model = get_peft_model(biased_model(name, auto), tuner_config(kind, auto, layers_to_transform=tail))
    assert wrapped_layers(model, kind) == ({1} if name == "albert" else {2, 3})
    each = BIASES[name][0] if kind is BitFitConfig else ADAPTER
    assert model.get_nb_trainable_parameters()[0] == each * groups_of(name) // 2
    for layers in ([4], [0, -1], [True], ["1"]):
        base = biased_model(name, auto)
        keys = list(base.state_dict())
        with pytest.raises(ValueError, match=r"is out of range: the backbone has 4 layers, 0\.\.3"):
            get_peft_model(base, tuner_config(kind, auto, layers_to_transform=layers))
        assert list(base.state_dict()) == keys


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
def test_layers_with_shared_weights_go_together(kind):
    with pytest.raises(ValueError, match=r"layers \[3\] share their weights with layers \[2\]"):
        get_peft_model(biased_model("albert"), tuner_config(kind, layers_to_transform=[3]))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "opt"])
def test_adapter_drop(name, tmp_path):
    model = tuned(AdapterConfig, name, HEADLESS, drop_layers=3)
    assert wrapped_layers(model, AdapterConfig) == {3}
    assert model.get_nb_trainable_parameters()[0] == ADAPTER
    same = tuned(AdapterConfig, name, HEADLESS, layers_to_transform=[3])
    batch = plain_batch(name)
    assert torch.equal(first_output(model, batch), first_output(same, batch))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(biased_model(name), tmp_path).eval()
    assert torch.equal(first_output(again, batch), first_output(model, batch))
    with pytest.raises(ValueError, match="drop_layers 4 leaves none of the backbone's 4 layers"):
        get_peft_model(biased_model(name), tuner_config(AdapterConfig, drop_layers=4))
    named = tuned(AdapterConfig, name, HEADLESS, drop_layers=2, target_modules=[FAMILIES[name].adapters[0]])
    assert wrapped_layers(named, AdapterConfig) == {2, 3}
    assert named.get_nb_trainable_parameters()[0] == ADAPTER


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bottleneck_dim": 0}, "bottleneck_dim 0"),
        ({"bottleneck_dim": 2.5}, "bottleneck_dim 2.5"),
        ({"drop_layers": -1}, "drop_layers -1"),
        ({"activation": "bent"}, "activation 'bent' is unknown; choose one of"),
        ({"init_std": 0.0}, "init_std 0.0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"drop_layers": 1, "layers_to_transform": [1]}, "give one of them"),
        ({"layers_to_transform": []}, r"layers_to_transform \[\]"),
        ({"target_modules": []}, r"target_modules \[\]"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**changes)


def test_named_targets():
    model = tuned(BitFitConfig, "bert", target_modules=["query", "output.LayerNorm"], layers_to_transform=[1])
    assert model.get_nb_trainable_parameters()[0] == 3 * D
    model = tuned(BitFitConfig, "bert", target_modules=r".*layer\.[01]\.intermediate.*")
    assert model.get_nb_trainable_parameters()[0] == 2 * F
    model = tuned(BitFitConfig, "bert", target_modules=["cls.predictions.transform.dense"])  # a head, when named
    assert model.get_nb_trainable_parameters()[0] == D
    model = tuned(AdapterConfig, "bert", target_modules=["intermediate.dense"])
    assert model.get_nb_trainable_parameters()[0] == LAYERS * (2 * F * M + M + F)
    plain = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))  # of no family
    assert get_peft_model(plain, BitFitConfig(target_modules=["0", "1"])).get_nb_trainable_parameters()[0] == 8


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (BitFitConfig, ["query", "querry"]),
        (BitFitConfig, ["word_embeddings"]),  # it has no bias
        (AdapterConfig, ["LayerNorm"]),
    ],
)
def test_targets_that_do_not_exist(kind, names):
    with pytest.raises(ValueError, match=rf"target_modules \['{names[-1]}'\] not found .* looked for linear"):
        get_peft_model(biased_model("bert"), kind(target_modules=names))
    with pytest.raises(ValueError, match=r"looked for .*, target_modules 'nothing"):
        get_peft_model(biased_model("bert"), kind(target_modules="nothing.*"))
    model = tuned(kind, "bert")
    with pytest.raises(ValueError, match="not found"):
        model.add_adapter("second", kind(target_modules=names))
    assert list(model.peft_config) == ["default"]
    model.add_adapter("second", tuner_config(kind))


def test_families_without_places_for_adapters():
    name = "bert"
    family = FAMILIES[name]
    try:
        register_family(name, Family("encoder.layer"))
        with pytest.raises(ValueError, match=r"Family\.adapters"):
            get_peft_model(biased_model(name), AdapterConfig())
        register_family(name, Family("encoder.layer", adapters=("output.dense", "output.tense")))
        with pytest.raises(ValueError, match=r"encoder\.layer\.0\.output\.tense"):
            get_peft_model(biased_model(name), AdapterConfig())
    finally:
        register_family(name, family)


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
def test_a_model_with_another_tuner_on_it(kind):
    lora = get_peft_model(biased_model("bert", MASKED), LoraConfig(target_modules=["query"]))
    late = get_peft_model(biased_model("bert", MASKED), late_config())
    for model in (lora, late):
        with pytest.raises(ValueError, match="the model already has"):
            get_peft_model(model, tuner_config(kind))


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "head"), [("roberta", "classifier"), ("llama", "score"), ("bert", "classifier")])
@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
def test_modules_to_save(kind, name, head, tmp_path):
    changes = {"target_modules": ["o_proj"]} if (kind, name) == (AdapterConfig, "llama") else {}
    overrides = {"attention_bias": True} if name == "llama" else {}

    def base():
        return biased_model(name, SEQUENCE, **overrides)

    model = shake(get_peft_model(base(), tuner_config(kind, SEQUENCE, **changes)), 3, PART[kind]).eval()
    names = trainable(model)
    assert {PART[kind] in n for n in names} == {True, False}
    assert all(PART[kind] in n or f"{head}.modules_to_save.default" in n for n in names)
    assert not any(PART[kind] in n and head in n for n in names)
    shake(model, 9, "modules_to_save")
    model.requires_grad_(False)
    output = first_output(model, plain_batch(name))
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(first_output(again, plain_batch(name)), output)


def test_a_saved_pooler_gets_no_difference_besides():
    model = get_peft_model(biased_model("bert"), BitFitConfig(modules_to_save=["pooler"]))
    assert model.get_nb_trainable_parameters()[0] == LAYERS * BERT + D + D * D + D
    assert {n.split(".")[2] for n in trainable(model) if "modules_to_save" in n} == {"pooler"}


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
@pytest.mark.parametrize(("name", "auto"), [("bert", HEADLESS), ("roberta", MASKED), ("gpt2", CAUSAL)])
def test_auto_classes_find_the_base_model(kind, name, auto, tmp_path):
    biased_model(name, auto).save_pretrained(tmp_path / "base")
    base = getattr(transformers, auto).from_pretrained(tmp_path / "base").eval()
    loaders = {
        None: AutoPeftModel,
        TaskType.CAUSAL_LM: AutoPeftModelForCausalLM,
        TaskType.FEATURE_EXTRACTION: AutoPeftModelForFeatureExtraction,
    }
    for task in {None, TASK[auto]}:
        config = tuner_config(kind, auto)
        config.task_type = task
        model = shake(get_peft_model(base, config), 3, PART[kind]).eval()
        model.save_pretrained(tmp_path / "tuner")
        again = loaders[task].from_pretrained(tmp_path / "tuner").eval()
        assert torch.equal(first_output(again, plain_batch(name)), first_output(model, plain_batch(name)))
        base = model.unload()


# -- beneath a late prompt ---------------------------------------------------------------------------------------------

BENEATH = [
    *((BitFitConfig, name, auto) for name in BIASES for auto in (HEADLESS, HEADED[name])),
    *((AdapterConfig, name, auto) for name in CONFIGS for auto in (HEADLESS, HEADED[name])),
]


def late_on(base, auto):
    return shake(get_peft_model(base, late_config(auto, prompt_layer=2)))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "auto"), BENEATH)
def test_a_tuner_of_the_tail_leaves_the_trunk_pure(kind, name, auto):
    batch = plain_batch(name)
    plain = late_on(biased_model(name, auto), auto).eval()
    expected = first_output(plain, batch)
    below = get_peft_model(biased_model(name, auto), tuner_config(kind, auto, layers_to_transform=[2, 3]))
    model = late_on(below, auto).eval()
    assert torch.equal(first_output(model, batch), expected)  # at its start the tuner changes nothing
    layer = model.base_model.layer
    split = layer.split_at(2)
    assert not split.trains_trunk

    model.train()
    states = []
    handle = split.trunk.register_forward_hook(lambda module, args, out: states.append(out.last_hidden_state))
    output = model(**batch)[0]
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    handle.remove()
    assert len(states) == 1
    assert not states[0].requires_grad
    assert not split.trunk.training
    assert split.tail.training
    parts = {part: {n: p for n, p in trainable(model).items() if part in n} for part in (PART[kind], "late_prompt_")}
    assert sum(map(len, parts.values())) == len(trainable(model))
    graded = {
        part: [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in v.values()] for part, v in parts.items()
    }
    assert all(graded["late_prompt_"])
    assert any(graded[PART[kind]])

    shake(model, 3, PART[kind]).eval()
    output = first_output(model, batch)
    assert not torch.allclose(output, expected, atol=1e-3)
    with torch.no_grad():
        kept = split.trunk(**batch).last_hidden_state
    assert torch.equal(first_output(model, batch, trunk_states=kept), output)


def test_a_tuner_of_all_layers_trains_the_trunk():
    for kind in (BitFitConfig, AdapterConfig):
        model = late_on(get_peft_model(biased_model("roberta", MASKED), tuner_config(kind)), MASKED).train()
        layer = model.base_model.layer
        assert layer.split_at(2).trains_trunk
        model(**plain_batch("roberta"))[0].square().sum().backward()
        grads = {n: p.grad for n, p in trainable(model).items()}
        assert all(g is not None for g in grads.values())
        assert any("layer.0." in n for n in grads)


@pytest.mark.parametrize(("kind", "name", "auto"), FEW)
def test_late_prompt_on_top(kind, name, auto, tmp_path):
    batch = plain_batch(name)
    below = tuned(kind, name, auto)
    alone = first_output(below, batch)
    model = late_on(below, auto).eval()
    output = first_output(model, batch)
    assert not torch.allclose(output, alone, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(first_output(model, batch), alone)
    model.save_pretrained(tmp_path / "late")
    assert all("late_prompt_" in k for k in load_file(tmp_path / "late" / "adapter_model.safetensors"))
    below.save_pretrained(tmp_path / "above")  # with the late prompt in place
    assert model.unload() is below
    assert torch.equal(first_output(below, batch), alone)
    below.save_pretrained(tmp_path / "tuner")
    files = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("above", "tuner")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][k], files[1][k]) for k in files[0])
    lower = PeftModel.from_pretrained(biased_model(name, auto), tmp_path / "above")
    assert torch.equal(first_output(lower.eval(), batch), alone)
    stacked = PeftModel.from_pretrained(lower, tmp_path / "late").eval()
    assert torch.equal(first_output(stacked, batch), output)


@pytest.mark.parametrize("kind", [BitFitConfig, AdapterConfig])
@pytest.mark.parametrize("name", ["roberta", "albert", "gpt2"])
def test_switching_the_tuner_beneath_a_late_prompt(kind, name):
    auto, batch = HEADED[name], plain_batch(name)
    below = tuned(kind, name, auto)
    below.add_adapter("second", tuner_config(kind, auto))
    shake(below, 4, ".second")
    model = late_on(below, auto).eval()
    outputs = {}
    for adapter in ("default", "second", None, "default", "second"):
        if adapter is None:
            below.base_model.disable_adapter_layers()
        else:
            below.base_model.enable_adapter_layers()
            below.base_model.set_adapter(adapter)
        output = first_output(model, batch)
        assert torch.equal(outputs.setdefault(adapter, output), output)
    assert torch.equal(outputs[None], first_output(late_on(biased_model(name, auto), auto).eval(), batch))
    for one, other in (("default", "second"), ("default", None), ("second", None)):
        assert not torch.allclose(outputs[one], outputs[other], atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "name", "targets"),
    [
        (BitFitConfig, "roberta", None),
        (BitFitConfig, "gpt2", ["ln_1"]),  # what the first layer's projections read is trained, they are not
        (AdapterConfig, "roberta", None),
        (AdapterConfig, "llama", None),
    ],
)
def test_reading_positions_with_a_tuner_in_the_tail(kind, name, targets):
    """The lean tail computes the same, and the same gradients."""
    batch, gradients = plain_batch(name), []
    if name not in ENCODERS:
        batch["use_cache"] = False  # a call that fills a cache computes all positions
    read = torch.tensor([3, 1, 2])
    for lean in (False, True):
        below = tuned(kind, name, HEADLESS, layers_to_transform=[2, 3], target_modules=targets)
        layer = late_on(below, HEADLESS).eval().base_model.layer
        if lean:
            states = layer(**batch, read=read).last_hidden_state
        else:
            states = layer(**batch).last_hidden_state[torch.arange(3), read][:, None]
        states.square().sum().backward()
        gradients.append({n: p.grad for n, p in layer.named_parameters() if p.requires_grad})
    for key, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][key], gradient, atol=1e-4, rtol=1e-4, msg=key)
