"""BLEU and ROUGE of scripts that their usual tokenizers cannot read."""

import json

import pytest
from helpers import tiny_nmt, tiny_sum

from rdrop_jax.errors import InputError
from rdrop_jax.tasks.seq2seq import scripts
from rdrop_jax.tasks.summarization import scores as summarization
from rdrop_jax.tasks.summarization import task as summarization_task
from rdrop_jax.tasks.translation import scores as translation
from rdrop_jax.tasks.translation import task as translation_task
from rdrop_jax.training import workdir as workdir_lib

TEXTS = {
    "Chinese": "今天天气很好",
    "Russian": "Сегодня хорошая погода",
    "Hindi": "आज मौसम अच्छा है",
    "Arabic": "الطقس جميل اليوم",
    "Thai": "สวัสดีครับ",
    "Korean": "오늘 날씨가 좋다",
    "Greek": "καλός καιρός σήμερα",
}


def means(answer, reference, **options):
    found = summarization.rouge_each([answer], [[reference]], **options)
    return {name: float(values[0]) for name, values in found.items()}


@pytest.mark.parametrize("language", TEXTS)
def test_equal_texts_of_any_script_score_100(language):
    text = TEXTS[language]
    found = means(text, text, tokenizer="unicode")
    assert found == dict.fromkeys(summarization.NAMES, pytest.approx(100.0))
    assert "eval.rouge_tokenizer=unicode" in summarization.misfit([[text]], "auto")
    assert summarization.misfit([[text]], "unicode") == ""
    assert means(text, text)["rouge1"] == 0


def test_accents_are_parts_of_words():
    assert means("été âgé", "êta égâ", tokenizer="unicode")["rouge1"] == 0
    assert "unicode" in summarization.misfit([["un été très chaud"]], "auto")
    combined = means("e\u0301te\u0301", "été", tokenizer="unicode")
    assert combined["rouge1"] == pytest.approx(100)


@pytest.mark.parametrize("stem", [False, True])
def test_english_scores_are_those_of_rouge_score(stem):
    answer = "The cats' running, 1.5 km_away. It's well-known! Is it?"
    reference = "A cat runs 1.5 km away. It is well known. It is."
    expected = means(answer, reference, stem=stem)
    assert means(answer, reference, stem=stem, tokenizer="unicode") == expected
    assert 0 < expected["rouge2"] < expected["rouge1"] < 100
    assert summarization.misfit([[reference, answer]], "auto") == ""


def test_sentences_end_at_the_full_stops_of_their_script():
    found = means("乙丙。甲。", "甲。乙丙。", tokenizer="unicode")
    assert found["rougeLsum"] == pytest.approx(100)
    assert found["rougeL"] < 70


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        *((x, "zh") for x in ("zh", "ZH", "zh-CN", "zh_TW", "zho_Hans", "cmn", "yue")),
        *((x, "char") for x in ("ja", "jpn", "ja_XX", "ko", "th", "km", "lo", "my")),
        *((x, "char") for x in ("bo", "kor_Hang")),
        *((x, "13a") for x in ("de", "en", "hi", "text", "", "1")),
    ],
)
def test_the_language_chooses_the_tokenizer_of_bleu(language, expected):
    assert translation.chosen("auto", language) == expected
    assert translation.chosen("13a", language) == "13a"


def test_text_that_a_tokenizer_of_bleu_cannot_split():
    chinese, words = ["我喜欢猫和狗。但是我不喜欢鸟。"], ["我 喜欢 猫 和 狗"]
    for tokenizer in ("13a", "intl", "none", "compound"):
        assert scripts.unsplit(chinese, tokenizer) > 0.9
    for tokenizer in ("zh", "char"):
        assert scripts.unsplit(chinese, tokenizer) == 0
    assert scripts.unsplit(words, "none") == 0
    assert scripts.unsplit(["私はねこがすきです"], "zh") > 0.8
    for text in (
        "ein Haus",
        "오늘 날씨가 좋다",
        "आज मौसम",
        "Сегодня",
        "",
        "123 猫 in a longer text",
    ):
        assert scripts.unsplit([text], "13a") == 0
    for text in ("ฉันชอบแมว", "ខ្ញុំចូលចិត្តឆ្មា", "ຂ້ອຍມັກແມວ", "ငါကြောင်ကြိုက်တယ်", "བོད་སྐད"):
        assert scripts.unsplit([text], "13a") > 0.9


def chinese_pairs(folder):
    for split in ("train", "validation", "test"):
        rows = (f"word {i % 7}\t词{'一二三四五'[i % 5]}和词语\n" for i in range(40))
        (folder / f"{split}.tsv").write_text("".join(rows), "utf-8")
    return folder


def test_translation_stops_before_training_or_follows_the_language(tmp_path):
    folder = chinese_pairs(tmp_path)
    unknown = tiny_nmt.config(folder, data__target="text")
    with pytest.raises(InputError, match=r"eval\.bleu: expected .* got 13a .*bleu=zh"):
        translation_task.build(unknown, tmp_path / "run", resuming=False)
    assert not (tmp_path / "run").exists()
    chinese = tiny_nmt.config(folder, data__target="zh-CN")
    task = translation_task.build(chinese, tmp_path / "run", resuming=False)
    assert "|tok:zh|" in task.report.signatures()["bleu"]
    chosen = tiny_nmt.config(folder, data__target="zh", eval__bleu="13a")
    translation_task.build(chosen, tmp_path / "13a", resuming=False)
    pairs = translation_task.translation_sets.find(chosen.data).splits["test"]()
    assert "got 13a" in translation_task.make_metrics(chosen).problem(pairs)


def test_summarization_stops_before_training(tmp_path):
    for split in ("train", "validation", "test"):
        row = {"article": "आज मौसम अच्छा है", "highlights": "मौसम अच्छा"}
        (tmp_path / f"{split}.jsonl").write_text((json.dumps(row) + "\n") * 9)
    with pytest.raises(InputError, match=r"eval\.rouge_tokenizer=unicode"):
        summarization_task.build(
            tiny_sum.config(tmp_path), tmp_path / "run", resuming=False
        )
    assert not (tmp_path / "run").exists()
    for tokenizer in ("unicode", "english"):
        config = tiny_sum.config(tmp_path, eval__rouge_tokenizer=tokenizer)
        summarization_task.build(config, tmp_path / "run", resuming=False)
    with pytest.raises(InputError, match=r"eval\.rouge_tokenizer: expected one of"):
        summarization_task.check_config(
            tiny_sum.config(tmp_path, eval__rouge_tokenizer="french")
        )


def test_signatures_name_the_tokenizer_of_rouge(tmp_path):
    old = summarization_task.signature(tiny_sum.config(tmp_path))
    assert old.endswith("stem, best reference, sentences end at .!?")
    new = tiny_sum.config(tmp_path, eval__rouge_tokenizer="unicode")
    assert "Unicode words" in summarization_task.signature(new)


def test_runs_of_earlier_versions_keep_their_tokenizers(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lib, "has_checkpoint", lambda workdir: True)
    for config, name, field, stored in (
        (tiny_nmt.config(tmp_path), "nmt", "bleu", "13a"),
        (tiny_sum.config(tmp_path), "sum", "rouge_tokenizer", "english"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        old = config.to_dict()
        if name == "nmt":
            old["eval"]["bleu"] = "13a"
        else:
            del old["eval"]["rouge_tokenizer"]
        (folder / "config.json").write_text(json.dumps(old))
        assert workdir_lib.read(folder).eval[field] == stored
        resumed = workdir_lib.resumed(config, folder)
        assert resumed.eval[field] == stored
        workdir_lib.check_config(resumed, folder)
        with pytest.raises(InputError, match=field):
            workdir_lib.check_config(config, folder)
