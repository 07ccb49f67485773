"""Raw downloads to prepared corpora, on archives built like the published ones."""

import dataclasses
import io
import json
import tarfile

import pytest

from rdrop_jax.data.splits import SPLITS
from rdrop_jax.errors import InputError
from rdrop_jax.flags import load
from rdrop_jax.tasks.seq2seq import parallel, prepared_text
from rdrop_jax.tasks.translation import corpora, moses, translation_sets

pytest.importorskip("sacremoses", reason="sacremoses is in the extra train")
NMT = "configs/nmt.py"


def archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            content = text.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def ted(count=60):
    """Talks as WIT3 publishes them; line 5 has too many words on one side."""
    de = [f"Das ist, sag\u2019 ich, Satz {i}." for i in range(count)]
    en = [f"This is, I say, Sentence {i}." for i in range(count)]
    en[5] = "Nothing like it " * 9
    head = "<url>http://x</url>\n<talkid>1</talkid>\n<title>{}</title>\n"
    seg = '<doc><seg id="1"> {} </seg>\n<seg id="2">b &amp; c</seg></doc>'
    return {
        "de-en/train.tags.de-en.de": head.format("Ein Titel") + "\n".join(de),
        "de-en/train.tags.de-en.en": head.format("A Title") + "\n".join(en),
        "de-en/IWSLT14.TED.dev2010.de-en.de.xml": seg.format("Eins."),
        "de-en/IWSLT14.TED.dev2010.de-en.en.xml": seg.format("One."),
        "de-en/IWSLT14.TED.tst2010.de-en.de.xml": seg.format("Zwei."),
        "de-en/IWSLT14.TED.tst2010.de-en.en.xml": seg.format("Two."),
    }


@pytest.fixture
def small(monkeypatch):
    """Recipes without the counts of the real corpora."""
    for name, recipe in list(corpora.RECIPES.items()):
        free = dataclasses.replace(recipe, pairs=(None, None, None))
        monkeypatch.setitem(corpora.RECIPES, name, free)


def test_iwslt_is_cut_as_published(tmp_path, small):
    source = archive(tmp_path / "de-en.tgz", ted())
    folder = corpora.prepare(tmp_path / "iwslt14_de_en", [source])
    found = {
        split: parallel.read(parallel.find(folder / split, "de", "en"))
        for split in SPLITS
    }
    assert found["train"].source[:2] == ["ein titel", "das ist , sag ' ich , satz 0 ."]
    assert found["train"].target[:2] == ["a title", "this is , i say , sentence 0 ."]
    # A title and 60 sentences, one of them too long: lines 23 and 46 are held out.
    assert [len(found[s]) for s in SPLITS] == [58, 2, 4]
    assert found["validation"].target[0] == "this is , i say , sentence 22 ."
    assert found["test"].source == ["eins .", "b & c", "zwei .", "b & c"]
    assert not any("nothing" in text for text in found["train"].target)
    index = json.loads((folder / "index.json").read_text())
    assert index["pairs"] == {"train": 58, "validation": 2, "test": 4}

    data = load(NMT, {"data.name": "iwslt14_de_en", "data.dir": str(tmp_path)}).data
    reverse = translation_sets.find(data).splits["test"]()
    assert reverse.target == found["test"].source
    assert "test.de.gz" in translation_sets.find(data).provenance()
    (folder / "test.de.gz").write_bytes(b"")
    with pytest.raises(InputError, match="Prepare the dataset again"):
        translation_sets.find(data)


def test_other_files_than_published_are_refused(tmp_path):
    source = archive(tmp_path / "de-en.tgz", ted())
    with pytest.raises(
        InputError, match=r"expected about 160239 pairs in train, .* 58"
    ):
        corpora.prepare(tmp_path / "iwslt14_de_en", [source])
    assert not (tmp_path / "iwslt14_de_en").exists()
    files = ted()
    files["de-en/train.tags.de-en.en"] += "\nmore"
    source = archive(tmp_path / "more.tgz", files)
    with pytest.raises(InputError, match="no partner for line 62"):
        corpora.prepare(tmp_path / "iwslt14_de_en", [source])
    with pytest.raises(InputError, match=r"expected a file train.tags.es-en.es .*wit3"):
        corpora.prepare(tmp_path / "iwslt14_es_en", [source])
    source.write_bytes(source.read_bytes()[:-200])
    with pytest.raises(InputError, match="a damaged archive"):
        corpora.prepare(tmp_path / "iwslt14_es_en", [source])


def test_what_is_not_prepared_says_how(tmp_path):
    for name, instead in translation_sets.HUB.items():
        _, source, target = name.split("_")
        changed = {"data.name": name, "data.source": source, "data.target": target}
        data = load(NMT, changed | {"data.dir": str(tmp_path)}).data
        with pytest.raises(InputError, match=f"Use --config.data.name={instead}"):
            translation_sets.find(data)
    data = load(f"{NMT}:iwslt14_de_en", {"data.dir": str(tmp_path)}).data
    with pytest.raises(InputError, match=r"prepare iwslt14_de_en (?s:.)*wit3.fbk.eu"):
        translation_sets.find(data)
    data = load(NMT, {"data.name": "iwslt14_es_en"}).data
    with pytest.raises(InputError, match="expected es and en"):
        translation_sets.find(data)
    assert {*corpora.RECIPES, *translation_sets.HUB} == set(prepared_text.NAMES)


def test_cleaning_keeps_lengths_alike():
    pairs = [
        ("a b", "c"),
        ("a b", "c d e"),
        ("a b", "c d e f"),
        ("", "a"),
        ("a " * 9, "b " * 9),
    ]
    kept = list(moses.clean(pairs, longest=8))
    assert kept == [("a b", "c d e")]


def test_moses_goes_there_and_back():
    text = "He said: \"it's 3.5 metres\", didn't he?"
    tokens = moses.make_tokenize("en", lowercase=True)(text + " \u200b ")
    assert tokens.split()[:5] == ["he", "said", ":", '"', "it"]
    assert moses.make_detokenize("en")(tokens) == text.lower()
    curly = text.replace("'", "\u2019")
    assert moses.make_tokenize("en", lowercase=True)(curly) == tokens
    assert moses.make_tokenize("zh")(" 我 喜欢 ") == "我 喜欢"
