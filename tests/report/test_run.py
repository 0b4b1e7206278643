import json
import shutil

import pytest
from test_page import analysis_of, whole_run

from repquant.errors import InputError
from repquant.report.analysis import write_analysis
from repquant.report.record import write_record
from repquant.report.run import read_run, read_runs
from repquant.report.thumbnails import FILE, write_thumbnails


@pytest.fixture
def folder(record, tmp_path):
    run = whole_run(record)
    folder = tmp_path / "a0"
    (folder / "analysis").mkdir(parents=True)
    write_record(run.record, folder / "result.json")
    write_analysis(run.analysis, folder / "analysis" / "analysis.json")
    write_thumbnails(run.thumbnails, folder / FILE)
    return folder


def test_a_run_is_read_with_all_that_lies_in_its_folder(record, folder):
    whole = whole_run(record)
    for path in (folder, folder / "result.json"):
        run = read_run(path)
        assert (run.name, run.record, run.analysis) == ("a0", whole.record, whole.analysis)
        assert run.thumbnails == whole.thumbnails
    (folder / FILE).unlink()
    (folder / "result.json").unlink()
    assert read_run(folder).record is None
    assert read_run(folder).thumbnails.images == {}


def test_runs_with_one_name_are_told_apart_and_a_run_given_twice_is_refused(record, folder, tmp_path):
    other = tmp_path / "other" / "a0"
    other.mkdir(parents=True)
    write_analysis(analysis_of(record), other / "analysis.json")
    assert [run.name for run in read_runs([folder, other])] == [str(folder), str(other)]
    with pytest.raises(InputError, match="given twice"):
        read_runs([folder, folder.parent / "a0"])


def test_an_analysis_goes_to_the_run_of_its_weights(record, folder, tmp_path):
    apart = tmp_path / "apart"
    (folder / "analysis").rename(apart)
    (run,) = read_runs([apart, folder])
    assert (run.name, run.record.command, run.analysis.output) == ("a0", "ptq", "runs/a0-analysis")
    second = shutil.copytree(folder, tmp_path / "second")
    assert [each.analysis is None for each in read_runs([folder, apart, second])] == [True, False, True]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", "{", r"result\.json is not a record of a run: "),
        ("analysis/analysis.json", "[]", r"analysis\.json is not an analysis: schema version None"),
        (FILE, '{"schema_version": 1, "images": {"a": "no base64!"}}', r"images\.a is no PNG or JPEG in base64"),
        (FILE, '{"schema_version": 1, "images": {"a": "PHN2Zz4="}}', r"images\.a is no PNG or JPEG in base64"),
        (FILE, '{"schema_version": 1, "images": {"a": 3}}', r"images\.a is 3, not a text"),
    ],
)
def test_bad_files_are_refused_by_name(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_run(folder)


def test_a_layer_of_an_analysis_with_a_text_for_a_number_is_named(folder):
    path = folder / "analysis" / "analysis.json"
    data = json.loads(path.read_text())
    data["sensitivity"]["layers"][1]["only"]["kl"] = "small"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=r'sensitivity\.layers\[1\]\.only\.kl is "small", not a finite number'):
        read_run(folder)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds neither result\.json nor analysis\.json; give the folder of a run"):
        read_run(tmp_path)
