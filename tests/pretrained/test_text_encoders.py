"""Text encoders in and out of Hugging Face's folders: config, weights, tokenizer."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.texts import GLUE, TINY, files, rows
from helpers.trees import nested
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from rdrop_jax import export as export_program
from rdrop_jax import flags, tasks
from rdrop_jax import predict as predict_program
from rdrop_jax import train as train_program
from rdrop_jax.errors import InputError
from rdrop_jax.pretrained import families
from rdrop_jax.pretrained.initialize import flatten
from rdrop_jax.tasks.field_checks import model_module
from rdrop_jax.tasks.text_classification import MODELS, bert

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "parity" / "encoder"
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# Special tokens at the ids 0 to 4.
SPECIAL = {
    "xlm-roberta": ROBERTA,
    "mpnet": (*ROBERTA[:3], "[UNK]", "<mask>"),
    "deberta-v2": ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"),
    "modernbert": ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"),
}
SPECIAL["deberta-v2-conv"] = SPECIAL["deberta-v2"]
KINDS = tuple(SPECIAL)


def make_tokenizer(kind):
    """Make a Unigram tokenizer of characters with 50 tokens, as sentencepiece does."""
    special = SPECIAL[kind]
    first, end = special["[CLS]" in special], special[2]
    unknown = "<unk>" if "<unk>" in special else "[UNK]"
    letters = "\u2581abcdefghijklmnopqrstuvwxyzTI.,0123456789\u00e9\u00fc\u732b"
    pieces = [(x, 0.0) for x in special] + [(x, -1.0) for x in letters]
    tokenizer = Tokenizer(models.Unigram(pieces[:50], unk_id=special.index(unknown)))
    tokenizer.add_special_tokens(list(special))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    ids = [(x, tokenizer.token_to_id(x)) for x in (first, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {end}",
        pair=f"{first} $A {end} $B {end}",
        special_tokens=ids,
    )
    return tokenizer


def folder(tmp_path, kind, **changed):
    """Copy stored weights, with a tokenizer and changed entries of config.json."""
    path = Path(
        shutil.copytree(STORED / f"{kind}-SequenceClassification", tmp_path / "hf")
    )
    stored = json.loads((path / "config.json").read_text())
    kept = {k: v for k, v in (stored | changed).items() if v is not ...}
    (path / "config.json").write_text(json.dumps(kept))
    make_tokenizer(kind).save(str(path / "tokenizer.json"))
    return path


def loaded(path, **more):
    given = {"init_from": str(path), "data.max_length": "12"} | more
    config = flags.load("configs/glue.py:files", given)
    return families.check_weights(config, tasks.families(), given=given)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_there_and_back(tmp_path, kind):
    path = folder(tmp_path, kind)
    config = loaded(path)
    assert config.model.name == kind.removesuffix("-conv")
    config = config.copy_and_resolve_references().unlock()
    config.data.classes = ("LABEL_0", "LABEL_1", "LABEL_2")
    architecture = model_module(config, MODELS)
    module = architecture.make_model(config)
    tokenizer = make_tokenizer(kind)
    family = architecture.make_family(module, config.data, lambda: tokenizer)
    found = family.read(path)
    assert len(found.notes) == (kind == "modernbert")
    assert all(family.facts[name] == x for name, x in found.facts.items())
    blank = jnp.zeros((1, 8), jnp.int32)
    shapes = jax.eval_shape(
        lambda key: module.init(key, blank, blank, blank == 0, train=False)["params"],
        jax.random.key(0),
    )
    shaped = {name: x.shape for name, x in flatten(shapes).items()}
    assert shaped == {name: x.shape for name, x in found.arrays.items()}
    out = tmp_path / "out"
    out.mkdir()
    family.save(nested(found.arrays), out, "safetensors")
    arrays, back = (load_file(x / "model.safetensors") for x in (path, out))
    assert arrays.keys() == back.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x)
    assert loaded(out).model.to_dict() == config.model.to_dict()
    stored, written = (json.loads((x / "config.json").read_text()) for x in (path, out))
    ours = {"architectures", "dtype", "label2id", "problem_type", "num_labels"}
    for name in written.keys() - ours & stored.keys():
        if "dropout" not in name:  # those of the run
            assert written[name] == stored[name], name
    assert (out / "tokenizer.json").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_load_two_steps_of_fine_tuning(tmp_path, kind):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    overrides = {k: v for k, v in TINY.items() if not k.startswith("model.")}
    overrides |= files(tmp_path) | {"init_from": str(folder(tmp_path, kind))}
    overrides |= {"total_steps": "2", "data.max_length": "14"}
    config = flags.load("configs/glue.py:files", overrides)
    train_program.train(config, tmp_path / "run", given=overrides)
    export_program.export(tmp_path / "run", tmp_path / "out")
    out = tmp_path / "out"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = [(r["text"], r["text_b"]) for r in rows(8, seed=2)]
    inputs = tokenizer(
        texts,
        padding=True,
        truncation="longest_first",
        max_length=14,
        return_tensors="pt",
    )
    with torch.no_grad():
        theirs = model(**inputs).logits.softmax(-1).numpy()
    answers = predict_program.load(tmp_path / "run")(texts)
    ours = [list(answer["probabilities"].values()) for answer in answers]
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    before = load_file(tmp_path / "hf" / "model.safetensors")
    after = load_file(out / "model.safetensors")
    for name, x in before.items():
        if x.shape == after[name].shape:  # not the head, which has other classes
            assert np.abs(after[name] - x).max() > 0, name


@pytest.mark.parametrize(
    ("kind", "field", "value", "wanted"),
    [
        ("mpnet", "relative_attention_num_buckets", 16, "32, got 16"),
        ("deberta-v2", "conv_kernel_size", 2, "0 or an odd number, got 2"),
        ("deberta-v2-conv", "conv_act", ..., '"gelu", got "tanh"'),
        ("deberta-v2", "share_att_key", ..., "true, got false"),
        ("deberta-v2", "pos_att_type", "c2p", '["p2c", "c2p"], got ["c2p"]'),
        ("deberta-v2", "position_buckets", ..., "a number above 1, got null"),
        ("modernbert", "norm_bias", True, "false, got true"),
        ("modernbert", "hidden_activation", "silu", "gelu, got 'silu'"),
        ("modernbert", "classifier_pooling", "max", '"cls" or "mean", got "max"'),
        ("modernbert", "local_attention", None, "a number, got null"),
    ],
)
def test_entries_of_config_json_with_other_outputs(
    tmp_path, kind, field, value, wanted
):
    path = folder(tmp_path, kind, **{field: value})
    with pytest.raises(InputError) as error:
        loaded(path)
    assert str(error.value).startswith(
        f"init_from: {path}: {field} of config.json: expected {wanted}. Use"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.conv_kernel", 2, "expected 0 or an odd number, found 2"),
        ("model.position_buckets", 1, "expected at least 2, found 1"),
        ("data.max_length", 4, "expected at least 8, found 4"),
    ],
)
def test_sizes_that_no_encoder_has_are_refused(field, value, message):
    config = flags.load(GLUE, {"model.name": "deberta-v2", field: str(value)})
    with pytest.raises(InputError, match=f"^{field}: {message}"):
        bert.make_model(config)
    if field == "data.max_length":  # DeBERTa reads texts of any length
        bert.make_model(flags.load(GLUE, {"model.name": "deberta-v2", field: "1024"}))
        with pytest.raises(InputError, match=r"^data.max_length: expected at most mod"):
            bert.make_model(flags.load(GLUE, {field: "1024"}))
