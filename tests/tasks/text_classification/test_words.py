"""Labels of words: reading, first subwords, spans, scores and answers."""

import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.texts import GLUE, TINY

from rdrop_jax import evaluate as evaluate_program
from rdrop_jax import export as export_program
from rdrop_jax import flags, tasks
from rdrop_jax import predict as predict_program
from rdrop_jax import train as train_program
from rdrop_jax.data import subwords
from rdrop_jax.data.tables import Row
from rdrop_jax.errors import InputError
from rdrop_jax.tasks.text_classification import evaluation, scores, text_sets, words
from rdrop_jax.tasks.text_classification.task import make_loss, make_train_data
from rdrop_jax.tasks.text_classification.texts import (
    Columns,
    Texts,
    collect,
    encode_labels,
    find_classes,
)
from rdrop_jax.training.mesh import make_mesh

COLUMNS = Columns("tokens", "", "tags", words=True)
CLASSES = ("B-LOC", "B-PER", "I-PER", "O")
PEOPLE, PLACES = ("Ann", "Bob", "Eve"), ("Oslo", "Bonn", "Rome")


def sentences(count, seed=0):
    """People, with a second name or without, who live in places."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        count = rng.choice((1, 2))
        names = [rng.choice(PEOPLE), "Smithson"][:count]
        tokens = [*names, "lives", "in", rng.choice(PLACES), "."]
        tags = [*("B-PER", "I-PER")[:count], "O", "O", "B-LOC", "O"]
        found.append({"tokens": tokens, "ner_tags": tags})
    return found


def conll(found):
    lines = ["-DOCSTART- O", ""]
    for row in found:
        pairs = zip(row["tokens"], row["ner_tags"], strict=True)
        lines += [f"{word} {tag}" for word, tag in pairs]
        lines.append("")
    return "\n".join(lines)


def load(folder, **more):
    for seed, (split, count) in enumerate({"train": 64, "validation": 24}.items()):
        (folder / f"{split}.txt").write_text(conll(sentences(count, seed)))
    names = {f"data.files.{s}": f"{s}.txt" for s in ("train", "validation")}
    changed = {k.replace("__", "."): str(v) for k, v in more.items()}
    fields = TINY | names | {"data.dir": str(folder)} | changed
    return flags.load(f"{GLUE}:words", fields)


SCHEMES = {
    "IOB": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "IOBES": ["O", "B-A", "I-A", "E-A", "S-A", "I-B-c", "E-B-c"],
    "untyped": ["O", "B", "I"],
}
# Precision, recall and F1 of seqeval 1.2.2 for `tagged`.
SEQEVAL = {
    "IOB": (0.8553459119496856, 0.8047337278106509, 0.8292682926829269),
    "IOBES": (0.84, 0.8032786885245902, 0.8212290502793295),
    "untyped": (0.8032786885245902, 0.8032786885245902, 0.8032786885245902),
}


def tagged(scheme):
    """Random sentences, and the same with a fifth of the tags drawn again."""
    rng = random.Random(1)
    tags = SCHEMES[scheme]
    wanted = [rng.choices(tags, k=rng.randrange(1, 12)) for _ in range(40)]
    rng = random.Random(2)
    found = [
        [tag if rng.random() < 0.8 else rng.choice(tags) for tag in row]
        for row in wanted
    ]
    return wanted, found


def scored(wanted, found, classes, seen=None):
    ids = {name: i for i, name in enumerate(classes)}
    logits = 9 * np.eye(len(classes))[[ids[tag] for row in found for tag in row]]
    labels = np.array([ids[tag] for row in wanted for tag in row], np.int32)
    seen = np.ones(len(labels), bool) if seen is None else seen
    counts = [len(row) for row in wanted]
    return scores.of_words(logits, labels, seen, counts, classes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_of_spans_are_those_of_seqeval(scheme):
    result = scored(*tagged(scheme), SCHEMES[scheme])
    names = ("precision", "recall", "f1")
    assert [result[n] for n in names] == pytest.approx(SEQEVAL[scheme], abs=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_stored_scores_are_those_of_the_installed_seqeval(scheme):
    metrics = pytest.importorskip("seqeval.metrics", reason="needs seqeval")
    names = ("precision_score", "recall_score", "f1_score")
    found = [getattr(metrics, name)(*tagged(scheme)) for name in names]
    assert found == pytest.approx(SEQEVAL[scheme], abs=1e-12)


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("I-A I-A O I-A", ["A 0 2", "A 3 4"]),  # IOB1
        ("I-A B-A I-B", ["A 0 1", "A 1 2", "B 2 3"]),
        ("B-A I-A E-A S-A E-A", ["A 0 3", "A 3 4", "A 4 5"]),
        ("B-A L-A U-A", ["A 0 2", "A 2 3"]),
        ("NOUN NOUN O -LRB-", ["NOUN 0 1", "NOUN 1 2", "-LRB- 3 4"]),
        ("O", []),
        ("B-A M-A E-A S-A B-A M-A M-B", ["A 0 3", "A 3 4", "A 4 6", "B 6 7"]),  # BMES
    ],
)
def test_spans_of_schemes(tags, wanted):
    assert [" ".join(map(str, s)) for s in scores.spans(tags.split())] == wanted


def test_prefixes_alone_are_spans_of_one_label():
    classes = ("B", "I", "O")
    found = scores.spans(["B", "I", "I", "O", "B", "B"], classes)
    assert [tuple(span) for span in found] == [("_", 0, 3), ("_", 4, 5), ("_", 5, 6)]
    found = scores.spans(["O", "I", "I", "O"], ("I", "O"))  # IOB1
    assert [tuple(span) for span in found] == [("_", 1, 3)]
    # Classes of words, not prefixes.
    assert [s.label for s in scores.spans(["B", "I"], ("A", "B", "I"))] == ["B", "I"]


def test_words_that_the_model_does_not_see_are_scored_as_o():
    wanted = [["B-PER", "O", "B-LOC"], ["O"]]
    seen = np.array([True, True, False, False])
    result = scored(wanted, wanted, CLASSES, seen)
    assert (result["precision"], result["recall"]) == (1.0, 0.5)
    assert (result["accuracy"], result["words_cut"]) == (0.75, 2)
    assert result["loss"] == pytest.approx(np.log(1 + 3 * np.exp(-9)))


def read(folder, text, name="tags", column="tokens"):
    (folder / "a.txt").write_text(text)
    return list(words.read_conll(folder / "a.txt", column, name))


def test_conll_files(tmp_path):
    text = "-DOCSTART- -X- O\n\nAnn NNP  B-PER\nran VBD O\n\n\nEve NNP B-PER"
    found = read(tmp_path, text)
    assert [row.place for row in found] == [
        f"{tmp_path}/a.txt, line {n}" for n in (3, 7)
    ]
    first = {"tokens": ["Ann", "ran"], "tags": ["B-PER", "O"]}
    assert found[0].fields == first
    assert found[1].fields == {"tokens": ["Eve"], "tags": ["B-PER"]}
    tags = read(tmp_path, text, "1", "0")[0].fields
    assert tags == {"0": ["Ann", "ran"], "1": ["NNP", "VBD"]}
    tabs = read(tmp_path, "New York\tB-LOC\n\t\nAnn\tB-PER\n")
    assert [row.get("tokens") for row in tabs] == [["New York"], ["Ann"]]
    assert read(tmp_path, "Ann\nran\n")[0].fields == {"tokens": ["Ann", "ran"]}


def test_conll_files_that_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"a.txt, line 2: expected 2 columns.*found 1"):
        read(tmp_path, "Ann B-PER\nran\n")
    with pytest.raises(
        InputError, match=r"line 1: data.columns.label: expected a column from 0 to 1"
    ):
        read(tmp_path, "Ann B-PER\n", "3")


def rows_of(*pairs):
    rows = [
        Row(f"line {i}", {"tokens": tokens, "tags": tags})
        for i, (tokens, tags) in enumerate(pairs, 1)
    ]
    return collect(rows, COLUMNS)


def test_lists_and_texts_of_words():
    found = rows_of(
        (["Ann", "", "ran"], ["B-PER", "O", "O"]),
        ([], []),
        (" Eve  ran", "B-PER O"),
        (["a"], [None]),
        ("  ", None),
    )
    assert found.first == ["Ann  ran", " Eve  ran", "a"]
    shown = [
        [t[a:b] for a, b in w] for t, w in zip(found.first, found.words, strict=True)
    ]
    assert shown == [["Ann", "", "ran"], ["Eve", "ran"], ["a"]]
    assert (found.left_out, found.labels[2]) == (2, None)
    assert find_classes(found, "words") == ("B-PER", "O")
    ids, there = encode_labels(found, "words", ("B-PER", "O"))
    assert (ids.tolist(), there.tolist()) == ([0, 1, 1, 0, 1, 0], [1, 1, 0])
    kept = found.take(np.array([1]))
    assert encode_labels(kept, "words", ("B-PER", "O"))[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("tokens", "tags", "match"),
    [
        (
            ["a", "b"],
            ["O"],
            "line 1: expected a label in 'tags' for each of 2 words.*1",
        ),
        ("a b", "O O O", "line 1: expected a label .* of 2 words in 'tokens', found 3"),
        ([1], ["O"], "line 1: expected a list of words or a text in tokens, found"),
        (["a"], 3, "line 1: expected a label in 'tags' for each of 1 words.*found 3"),
        (["a", "b"], ["O", "X"], r"line 1, word 1 'b': expected a label that .* 'X'"),
        (["a", "b"], ["O", None], r"line 1, word 1 'b': expected the name of a class"),
    ],
)
def test_rows_that_are_refused(tokens, tags, match):
    with pytest.raises(InputError, match=match):
        encode_labels(rows_of((tokens, tags)), "words", ("O", "Y"))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [" ".join(row["tokens"]) for row in sentences(40)]
    return subwords.train_wordpiece(texts, 60)


def test_first_tokens_are_those_of_split_words(tokenizer):
    each = [["Annsmith", "lives", "in", "Romelives", "."], ["Bonn", "", "Oslo."], ["é"]]
    found = [words.sentence(tokens, "row", "tokens") for tokens in each]
    encoded = subwords.encode(tokenizer, [t for t, _ in found], None, 32, ends=True)
    first = encoded.first_tokens([places for _, places in found])
    wanted = []
    for row, tokens in enumerate(each):
        of = tokenizer.encode(tokens, is_pretokenized=True).word_ids
        at = [of.index(i) if i in of else None for i in range(len(tokens))]
        wanted += [-1 if i is None else encoded.starts[row] + i for i in at]
    assert first.tolist() == wanted
    assert -1 in wanted
    assert len(encoded.ids) > 2 * len(each) + len(first)  # some words are split


def test_words_after_the_maximum_length_have_no_token(tokenizer):
    places = [words.sentence("in " * 9, "row", "tokens")[1]]
    encoded = subwords.encode(tokenizer, ["in " * 9], None, 8, ends=True)
    assert (encoded.first_tokens(places) >= 0).tolist() == [True] * 6 + [False] * 3


def test_the_loss_is_that_of_scored_tokens_alone(tmp_path, tokenizer):
    config = load(tmp_path, data__max_length=10, rdrop__alpha=2.0)
    config = text_sets.check_data(config)
    assert config.data.classes == CLASSES
    texts = text_sets.open_split(text_sets.find(config.data), config.data, "train")
    texts = texts.take(np.arange(8))
    texts.labels[3] = None  # counts in the consistency term alone
    data = make_train_data(config, tokenizer, texts)
    batches = map(data.__getitem__, range(64))
    batch = next(b for b in batches if any(b["labelled"].sum(1) == 0))
    where = batch["where"]
    assert set(where.sum(1)) <= {5, 6}
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, *where.shape, 4)).astype(np.float32)
    loss = make_loss(config)
    arrays = jax.tree.map(jnp.asarray, batch)
    found, _ = loss(jnp.asarray(logits), arrays, alpha=2.0)
    log_p = logits.astype(np.float64)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    labels = np.broadcast_to(batch["label"], (2, *where.shape))
    nll = -np.take_along_axis(log_p, labels[..., None], -1)[..., 0].sum(0)
    kl = ((np.exp(log_p[0]) - np.exp(log_p[1])) * (log_p[0] - log_p[1])).sum(-1) / 2
    known = where & (batch["labelled"] > 0)
    assert float(found) == pytest.approx(nll[known].mean() + 2 * kl[where].mean())


def model_of(tokenizer, classes):
    """A forward that knows the words of `sentences` by their first tokens."""
    tags = dict.fromkeys(PEOPLE, "B-PER") | dict.fromkeys(PLACES, "B-LOC")
    tags["Smithson"] = "I-PER"
    table = np.zeros((60, len(classes)), np.float32)
    table[:, classes.index("O")] = 1.0
    for word, tag in tags.items():
        table[tokenizer.encode(word).ids[1]] = (
            5 * np.eye(len(classes))[classes.index(tag)]
        )
    return lambda params, batch, key: jnp.asarray(table)[batch["tokens"]]


def made(tmp_path, tokenizer, **more):
    config = text_sets.check_data(load(tmp_path, **more))
    forward = model_of(tokenizer, CLASSES)
    scorer = evaluation.Scorer(config, forward, lambda: tokenizer)
    found = text_sets.find(config.data)
    split = lambda name: text_sets.open_split(found, config.data, name)  # noqa: E731
    return scorer, split, make_mesh()


def test_scores_and_answers_of_a_model(tmp_path, tokenizer, caplog):
    parts = made(tmp_path, tokenizer)
    result = evaluation.make_evaluator(*parts[:2], "validation", parts[2])({})
    assert (result["f1"], result["accuracy"], result["words_cut"]) == (1.0, 1.0, 0)
    assert result["examples"] == 24
    assert result["words"] == sum(len(row["tokens"]) for row in sentences(24, 1))
    predictor = evaluation.make_predictor(*parts)
    text = "Eve Smithson  saw\tRome"
    (tmp_path / "new.conll").write_text("Eve\nSmithson\n\nRome\n")
    inputs = [text, ["Eve", "Smithson"], tuple(text.split("\t")), " ", []]
    inputs += predictor.read(str(tmp_path / "new.conll"))
    found = list(predictor.run({}, inputs))
    name, place = found[0]["spans"]
    shown = {"label": "PER", "start": 0, "end": 12, "text": "Eve Smithson"}
    assert name == shown | {"score": pytest.approx(1 / (1 + 3 * np.exp(-5)), abs=1e-6)}
    assert (place["label"], place["start"], place["text"]) == ("LOC", 18, "Rome")
    assert found[1]["input"] == "Eve Smithson"
    assert found[1]["spans"] == [name] == found[5]["spans"]
    assert found[2]["spans"] == found[0]["spans"]
    for row in (3, 4):
        assert found[row]["spans"] == []
        assert found[row]["notes"] == ["empty text: no label"]
    assert [s["text"] for s in found[6]["spans"]] == ["Rome"]
    rows = predictor.run({}, predictor.rows("validation"))
    assert [a["input"] for a in rows] == [
        " ".join(r["tokens"]) for r in sentences(24, 1)
    ]


def test_words_that_are_cut_off_are_reported(tmp_path, tokenizer, caplog):
    scorer, split, mesh = made(tmp_path, tokenizer, data__max_length=8)
    long = Texts(["in " * 9 + "Rome"], None, [["O"] * 9 + ["B-LOC"]], ["row"])
    spans = [words.sentence(long.first[0], "row", "tokens")[1]]
    long = Texts(long.first, None, long.labels, long.places, spans)
    with caplog.at_level("WARNING", logger="rdrop_jax"):
        result = evaluation.make_evaluator(scorer, lambda _: long, "test", mesh)({})
        make_train_data(scorer.config, tokenizer, long)
    assert (result["words_cut"], result["recall"], result["accuracy"]) == (4, 0.0, 0.9)
    for what in ("test: 4 of 10 words have no tokens", "train: 4 of 10"):
        assert what in caplog.text
    predictor = evaluation.make_predictor(scorer, split, mesh)
    (answer,) = predictor.run({}, [long.first[0]])
    assert answer["spans"] == []
    assert answer["notes"][0].startswith("4 words after the maximum length")


def test_fields_that_do_not_fit(tmp_path):
    def refused(match, **more):
        with pytest.raises(InputError, match=match):
            tasks.check_data(load(tmp_path, **more))

    refused("data.columns.text_b: expected no second text", data__columns__text_b="b")
    for labels in ("words", "numbers"):
        fields = {"data.name": "docstrings", "data.labels": labels}
        message = f"data.labels: expected classes for docstrings, found {labels}"
        with pytest.raises(InputError, match=message):
            tasks.check_data(flags.load(GLUE, fields))
    (tmp_path / "train.zip").write_bytes(b"PK")
    refused(
        "data.files.train: expected .*found .*train.zip", data__files__train="train.zip"
    )


def test_class_names_of_lists_by_name(monkeypatch):
    datasets = pytest.importorskip("datasets", reason="needs the extra [hub]")
    from rdrop_jax.data import hub

    tags = datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER"]))
    table = datasets.Dataset.from_dict(
        {"tokens": [["Ann", "ran"], ["he"]], "ner_tags": [[1, 0], [-1]]},
        datasets.Features(
            {"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags}
        ),
    )
    loaded = hub.Loaded("hf:org/names", {}, {"train": table, "test": table.select([1])})
    config = flags.load(f"{GLUE}:words", {"data.name": "hf:org/names"})
    monkeypatch.setattr(hub, "load", lambda name, commit: loaded)
    config = tasks.check_data(config)
    assert config.data.classes == ("O", "B-PER")
    assert not config.data.files.test  # its words have no labels
    found = text_sets.find(config.data).splits["train"]()
    assert found.labels == [["B-PER", "O"], None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    workdir = folder / "run"
    every = {"total_steps": 60, "eval__every": 60, "checkpoint__every": 60}
    return workdir, train_program.train(load(folder, **every), workdir)


@pytest.mark.slow
def test_learns_and_predicts(trained):
    workdir, result = trained
    assert result["validation"]["f1"] > 0.95
    scored = evaluate_program.evaluate(workdir, "validation", "best")
    assert scored["f1"] == result["validation"]["f1"]
    (answer,) = predict_program.load(workdir)(["Bob Smithson lives in Oslo ."])
    assert [s["text"] for s in answer["spans"]] == ["Bob Smithson", "Oslo"]


@pytest.mark.slow
def test_transformers_load_what_is_exported(trained, tmp_path):
    export_program.export(trained[0], tmp_path / "model")
    stored = json.loads((tmp_path / "model" / "config.json").read_text())
    assert stored["architectures"] == ["BertForTokenClassification"]
    assert (
        'pipeline_tag: "token-classification"'
        in (tmp_path / "model" / "README.md").read_text()
    )
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch = pytest.importorskip("torch", reason="needs torch")
    model = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "model"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = ["Bob", "Smithson", "lives", "in", "Oslo", "."]
    inputs = tokenizer([tokens], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model.eval()(**inputs).logits[0].softmax(-1).numpy()
    first = [inputs.word_ids(0).index(i) for i in range(len(tokens))]
    tags = [model.config.id2label[i] for i in theirs[first].argmax(-1)]
    (answer,) = predict_program.load(trained[0])([tokens])
    assert [s["label"] for s in answer["spans"]] == [
        s.label for s in scores.spans(tags)
    ]
    score = theirs[first].max(-1)[:2].mean()
    assert answer["spans"][0]["score"] == pytest.approx(score, abs=1e-4)
