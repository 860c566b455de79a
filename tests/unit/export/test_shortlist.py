"""`dragoman-export shortlist`: from a bundle and text to a bundle with lists, and back after it was stopped."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dragoman_export.progress import QUIET
from dragoman_export.shortlist import translated
from dragoman_export.shortlist.decoding import open_decoder
from dragoman_export.shortlist.kept import KeptWork
from dragoman_export.shortlist.links import Aligner, Links, LinkSum
from dragoman_export.shortlist.making import Wanted, make_lists
from dragoman_export.shortlist.sentences import read_sentences
from dragoman_export.shortlist.tables import make_table, same_pieces
from dragoman_export.text_files import CorpusFile
from dragoman_server.bundle.bundle import Bundle
from dragoman_server.bundle.languages import Direction
from dragoman_server.bundle.manifest import ATTENTION_FILE, VOCABULARY_FILE, Precision
from dragoman_server.engine.candidates import Candidates
from support.bundles import edit_manifest
from support.export_command import ExportCommand
from support.tiny_model import WORDS

EN_FR = Direction("en", "fr")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ExportCommand:
    return ExportCommand(monkeypatch, capsys)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """Sixty sentences, of which some are there twice."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, size=rng.integers(2, 6))) for _ in range(60)]
    path = tmp_path / "english.txt"
    path.write_text("".join(f"{line}\n" for line in [*lines, "", *lines[:5]]), encoding="utf-8")
    return path


def links(*triples: tuple[int, int, float]) -> Links:
    sources, targets, weights = zip(*triples, strict=True)
    return Links(np.array(sources), np.array(targets), np.array(weights, np.float64))


# -- from end to end ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_lists_of_everything_change_nothing(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path, precision: Precision
) -> None:
    """A list of the whole vocabulary has every translation; a short one is measured as it is."""
    bundle, new = tiny_bundles[precision], tmp_path / "new"
    size = bundle.manifest.architecture.vocabulary_size
    references = tmp_path / "references.txt"
    references.write_text("\n".join(sources.read_text(encoding="utf-8").split("\n")[:20]), encoding="utf-8")
    options = ("--sources", f"en-fr={sources}", "--frequent", size, "--num-threads", 1)
    assert run("shortlist", bundle.folder, new, *options, "--test", f"en-fr={references},{references}") == 0, run.err
    made = Bundle.open(new)
    assert f"Wrote {made.resource_name} to {new}" in run.out
    assert made.vocabulary is not None
    assert made.manifest.vocabulary is not None
    assert made.vocabulary.directions == {EN_FR}
    assert made.vocabulary.languages == {"de", "fr"} == {*made.manifest.vocabulary.languages}
    (facts,) = made.manifest.vocabulary.shortlists
    assert (facts.direction, facts.per_token, facts.num_sentences) == (EN_FR, 200, 20)
    assert facts.share_identical > 0.5
    assert facts.bleu_difference is not None
    assert 1 <= facts.mean_length <= facts.p95_length <= size
    # All but the lists is as it was.
    assert {name: made.manifest.files[name] for name in bundle.manifest.files} == bundle.manifest.files
    assert [*tmp_path.glob(".*")] == []


def test_held_out_sentences_are_measured_without_references(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path
) -> None:
    options = ("--sources", f"en-fr={sources}", "--sources", f"en-de={sources}", "--per-token", 30)
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path / "new", *options) == 0, run.err
    vocabulary = Bundle.open(tmp_path / "new").manifest.vocabulary
    assert vocabulary is not None
    assert [facts.direction for facts in vocabulary.shortlists] == [("en", "fr"), ("en", "de")]
    for facts in vocabulary.shortlists:
        assert facts.num_sentences == 6  # a tenth of sixty
        assert facts.bleu_difference is None
    assert "Measuring en-de" in run.err
    for shown in ("identical", "20", "30"):
        assert shown in run.out
    said = " ".join(run.out.split())
    assert "Warning: en-fr was measured on 6 sentences, too few to rely on." in said
    for facts in vocabulary.shortlists:
        is_low = f"Warning: of {'-'.join(facts.direction)}, only" in said
        assert is_low == (facts.share_identical < 0.95)


def test_lists_that_change_most_translations_are_warned_of(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path
) -> None:
    options = ("--sources", f"en-fr={sources}", "--per-token", 1, "--frequent", 1)
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path / "new", *options) == 0, run.err
    assert "Warning: of en-fr, only" in " ".join(run.out.split())


def test_a_negative_number_of_threads_is_refused_by_its_name(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path / "new", "--num-threads", -1) == 2
    assert "--num-threads" in run.err


def test_a_bundle_may_have_lists_of_languages_alone_and_later_others(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path
) -> None:
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path / "new") == 0, run.err
    by_scripts = Bundle.open(tmp_path / "new").vocabulary
    assert by_scripts is not None
    assert by_scripts.directions == frozenset()
    text = tmp_path / "french.txt"
    text.write_text("the cat\n", encoding="utf-8")
    options = ("--target-text", f"fr={text}", "--force")
    assert run("shortlist", tmp_path / "new", tmp_path / "new", *options) == 0, run.err
    made = Bundle.open(tmp_path / "new")
    assert made.vocabulary is not None
    french, german = made.vocabulary.language("fr"), made.vocabulary.language("de")
    assert french is not None
    assert german is not None
    assert {*made.tokenizer.encode_target("the cat")} <= {*french.tolist()} < {*german.tolist()}
    size = made.manifest.architecture.vocabulary_size
    assert f"List of fr: {len(french)} of {size} tokens; of more such text it lacks about " in run.out


def test_a_translation_is_the_same_exactly_where_its_list_has_all_of_it(
    tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path
) -> None:
    wanted = Wanted([CorpusFile(EN_FR, sources)], per_token=2, num_frequent=15)
    bundle = make_lists(tiny_bundles["int8"], tmp_path / "new", wanted, 1, QUIET).bundle
    framing, tables = bundle.manifest.framing_of(EN_FR), bundle.vocabulary
    assert tables is not None
    ids = [
        framing.frame(bundle.tokenizer.encode(line)) for line in sources.read_text(encoding="utf-8").split("\n")[:60]
    ]
    lists = [found for source in ids if (found := tables.shortlist(source, EN_FR)) is not None]
    with open_decoder(bundle.folder, 1) as decoder:
        full = [*decoder.submit(ids, framing)]
        listed = [*decoder.submit(ids, framing, [Candidates(each) for each in lists])]
    are_same = [one == other for one, other in zip(full, listed, strict=True)]
    assert are_same == [np.isin(target, each).all() for target, each in zip(full, lists, strict=True)]
    assert 5 < sum(are_same) < 55


# -- a run that was stopped --------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on(
    run: ExportCommand,
    tiny_bundles: dict[Precision, Bundle],
    sources: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(translated, "_CHUNK", 10)
    aligned: list[object] = []
    whole = Aligner.links

    def stopping(limit: int) -> Callable[..., Links]:
        def align(self: Aligner, *pair: object) -> Links:
            if len(aligned) == limit:
                raise OSError(28, "No space left on device")
            aligned.append(pair)
            return whole(self, *pair)  # type: ignore[arg-type]

        return align

    folder, command = tiny_bundles["fp32"].folder, ("--sources", f"en-fr={sources}", "--num-threads", 1)
    monkeypatch.setattr(Aligner, "links", stopping(25))
    assert run("shortlist", folder, tmp_path / "new", *command) == 2
    assert not (tmp_path / "new").exists()
    (kept,) = tmp_path.glob(".new.*")
    assert len([*kept.glob("en-fr-*.npz")]) == 2  # of ten sentences each
    (kept / "en-fr-10.npz").write_bytes(b"cut off")
    aligned.clear()
    monkeypatch.setattr(Aligner, "links", stopping(1000))
    assert run("shortlist", folder, tmp_path / "new", *command) == 0, run.err
    assert len(aligned) == 54 - 10
    assert [*tmp_path.glob(".*")] == []
    aligned.clear()
    assert run("shortlist", folder, tmp_path / "again", *command) == 0, run.err
    assert len(aligned) == 54
    assert (tmp_path / "new" / VOCABULARY_FILE).read_bytes() == (tmp_path / "again" / VOCABULARY_FILE).read_bytes()


def test_work_for_another_purpose_is_deleted(tmp_path: Path) -> None:
    one = KeptWork(tmp_path / "new", ["one"])
    one.save("a", {"numbers": np.arange(3)})
    found = KeptWork(tmp_path / "new", ["one"]).load("a", ["numbers"])
    assert found is not None
    assert found["numbers"].tolist() == [0, 1, 2]
    assert one.load("b", ["numbers"]) is None
    assert one.load("a", ["numbers", "others"]) is None
    other = KeptWork(tmp_path / "new", ["two"])
    assert other.load("a", ["numbers"]) is None
    assert [*tmp_path.iterdir()] == []
    other.save("a", {})
    other.delete()
    other.delete()
    assert [*tmp_path.iterdir()] == []


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--sources", "en-es={text}"], "the model does not translate en to es"),
        (["--sources", "en-fr"], "is not of the form SOURCE-TARGET=FILE"),
        (["--sources", "en-fr=nowhere.txt"], "nowhere.txt does not exist or is not a file"),
        (["--sources", "en-fr={one}"], "en-fr has 1 different sentences; at least 2 are needed"),
        (["--sources", "en-fr={bytes}"], "is not UTF-8 text"),
        (["--import", "en-fr={text}"], "line 1 is .*, not a target piece, a source piece and a probability"),
        (["--import", "en-fr={lexical}", "--sources", "en-fr={text}"], "a direction has one table"),
        (["--import", "en-fr={lexical}", "--import", "en-fr={lexical}"], "a direction has one table"),
        (["--target-text", "{text}"], "is not of the form TARGET=FILE"),
        (["--target-text", "fr=nowhere.txt"], "nowhere.txt does not exist or is not a file"),
        (["--target-text", "en={text}"], "the model does not translate to en"),
        (["--test", "en-fr={text}"], "is not of the form SOURCE-TARGET=SOURCE_FILE,REFERENCE_FILE"),
    ],
)
def test_options_that_are_wrong_leave_nothing_behind(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path, options: list[str], fault: str
) -> None:
    files = {
        "text": b"the cat\na dog\nthe bird\n",
        "one": b"the cat\nthe cat\n",
        "bytes": b"the \xff\n",
        "lexical": "▁the ▁the 0.5\n".encode(),
    }
    paths = {name: tmp_path / name for name in files}
    for name, contents in files.items():
        paths[name].write_bytes(contents)
    new = tmp_path / "folder" / "new"
    arguments = [option.format(**paths) for option in options]
    assert run("shortlist", tiny_bundles["fp32"].folder, new, *arguments) == 2
    (line,) = run.err.splitlines()
    assert line.startswith("dragoman-export: ")
    assert re.search(fault, line), line
    assert not new.parent.exists() or [*new.parent.iterdir()] == []


def test_bundles_for_cuda_take_no_lists(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    assert run("shortlist", tiny_bundles["fp16"].folder, tmp_path / "new") == 2
    assert "is at fp16, for CUDA, where targets have the whole vocabulary" in run.err


def test_a_folder_that_is_there_is_not_replaced(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path) == 2
    assert "exists already" in run.err


def test_a_text_of_a_language_that_is_empty_is_refused(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    path = tmp_path / "text.fr"
    path.write_text("\n \n", encoding="utf-8")
    assert run("shortlist", tiny_bundles["fp32"].folder, tmp_path / "new", "--target-text", f"fr={path}") == 2
    assert "text.fr has no text: the list of fr would have nothing but characters" in run.err


@pytest.mark.parametrize("bit", range(8))
def test_damaged_work_is_done_again(tmp_path: Path, bit: int) -> None:
    """Whatever is damaged: what was read is what was kept, or nothing."""
    kept = KeptWork(tmp_path / "new", [])
    kept.save("a", {"numbers": np.arange(3), "others": np.arange(5)})
    (path,) = tmp_path.glob(".new.*/a.npz")
    contents = path.read_bytes()
    for place in range(len(contents)):
        path.write_bytes(contents[:place] + bytes([contents[place] ^ 1 << bit]) + contents[place + 1 :])
        found = kept.load("a", ["numbers", "others"])
        assert found is None or [found["numbers"].tolist(), found["others"].tolist()] == [[0, 1, 2], [0, 1, 2, 3, 4]]


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_a_tenth_is_held_out_at_most_and_each_sentence_once(
    tiny_bundles: dict[Precision, Bundle], sources: Path
) -> None:
    file = CorpusFile(("en", "fr"), sources)
    for number, expected in ((1000, 6), (4, 4), (1, 1)):
        (found,) = read_sentences(tiny_bundles["fp32"], [file, file], number)
        assert len(found.held_out) == expected
        assert len(found.made_of) == 60 - expected
        assert not {*found.made_of} & {*found.held_out}


def test_sentences_that_are_too_long_are_counted(tiny_bundles: dict[Precision, Bundle], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(f"the cat\n{'the cat ' * 300}\na dog\n", encoding="utf-8")
    (found,) = read_sentences(tiny_bundles["fp32"], [CorpusFile(("en", "fr"), path)], 1)
    assert len(found.made_of) + len(found.held_out) == 2
    assert found.num_too_long == 1


def test_the_links_of_a_token_are_its_attention(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["fp32"]
    framing = bundle.manifest.framing_of(EN_FR)
    source, target = framing.frame(bundle.tokenizer.encode("the old cat")), (40, 41, bundle.manifest.eos_token_id)
    likely = np.array([(40, 50), (41, 51), (2, 52)])
    found = Aligner(bundle).links(source, target, likely, np.array([[0.8, 0.1]] * 3, np.float32), framing)
    assert {*found.sources.tolist()} <= {*source[1:-1]}
    assert {*found.targets.tolist()} == {*likely.ravel().tolist()}
    assert 0 < found.weights.sum() <= 0.9 * len(target)
    of_first, of_second = (found.weights[found.targets == token].sum() for token in (40, 50))
    assert of_first == pytest.approx(8 * of_second, rel=0.1)


def test_without_an_attention_graph_all_tokens_of_a_source_are_linked(
    tiny_bundles: dict[Precision, Bundle], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bundles["fp32"].folder, tmp_path / "bundle")
    edit_manifest(folder, lambda values: values["files"].pop(ATTENTION_FILE))
    bundle = Bundle.open(folder)
    framing = bundle.manifest.framing_of(EN_FR)
    source = framing.frame(bundle.tokenizer.encode("the old cat"))
    ones = np.ones((2, 1), np.float32)
    found = Aligner(bundle).links(source, (40, 41), np.array([[40], [41]]), ones, framing)
    assert len(found.weights) == 2 * (len(source) - 2)
    assert found.weights.tolist() == pytest.approx([1 / len(source)] * len(found.weights))


def test_links_are_summed() -> None:
    total = LinkSum()
    total.add(links((1, 5, 1.0), (1, 5, 0.5), (0, 7, 1.0)))
    total.add(links((1, 4, 2.0), (1, 5, 0.25)))
    found = total.total()
    assert [*zip(*(column.tolist() for column in found), strict=True)] == [(0, 7, 1.0), (1, 4, 2.0), (1, 5, 1.75)]
    assert len(Links.summed([]).weights) == 0


def test_a_row_has_the_heaviest_links_first_without_those_that_are_in_every_list() -> None:
    found = make_table(
        EN_FR, links((2, 9, 1.0), (2, 8, 3.0), (2, 7, 2.0), (2, 0, 9.0), (0, 9, 1.0)), np.array([0]), 3, 2
    )
    assert found.offsets.tolist() == [0, 1, 1, 3]
    assert found.links.tolist() == [9, 8, 7]


def test_a_table_that_is_too_large_loses_its_lightest_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dragoman_export.shortlist.tables.MAX_LINKS", 3)
    found = make_table(
        EN_FR, links((0, 9, 1.0), (0, 8, 3.0), (1, 7, 2.0), (1, 6, 0.5), (1, 5, 4.0)), np.array([0]), 2, 9
    )
    assert found.offsets.tolist() == [0, 1, 3]
    assert found.links.tolist() == [8, 5, 7]


def test_a_token_may_be_copied(tiny_bundles: dict[Precision, Bundle]) -> None:
    bundle = tiny_bundles["fp32"]
    found = same_pieces(bundle.tokenizer, bundle.manifest)
    assert found.sources.tolist() == found.targets.tolist()
    assert {*bundle.tokenizer.encode("the cat")} <= {*found.sources.tolist()}
    assert bundle.manifest.eos_token_id not in found.sources
    table = make_table(EN_FR, Links.summed([found, links((50, 60, 7.0))]), np.array([0]), 316, 2)
    assert table.links[table.offsets[50] : table.offsets[51]].tolist() == [50, 60]


def test_the_manifest_has_what_was_measured(
    run: ExportCommand, tiny_bundles: dict[Precision, Bundle], sources: Path, tmp_path: Path
) -> None:
    """The facts are those of the lists that are written, whatever stood there before they were measured."""
    lexical = tmp_path / "lex.s2t"
    lexical.write_text("▁cat ▁dog 0.5\n", encoding="utf-8")
    assert run("shortlist", tiny_bundles["int8"].folder, tmp_path / "new", "--import", f"en-fr={lexical}") == 0, run.err
    values = json.loads((tmp_path / "new" / "manifest.json").read_text(encoding="utf-8"))
    (facts,) = values["vocabulary"]["shortlists"]
    assert facts["num_sentences"] == 64  # the samples of English
    bundle = Bundle.open(tmp_path / "new")
    assert bundle.vocabulary is not None
    shortlist = bundle.vocabulary.shortlist(bundle.tokenizer.encode("dog"), EN_FR)
    assert shortlist is not None
    assert {*bundle.tokenizer.encode_target("cat dog")} <= {*shortlist.tolist()}
    assert facts["mean_length"] > 100
