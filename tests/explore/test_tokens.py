"The explorer on finished runs of the tiny study, without a browser."

import json
import shutil

import numpy as np
import pytest

from gti_nb.core import GTIError, read_json
from gti_nb.explore.explorer import TokenExplorer
from gti_nb.explore.tokens import finished_runs, load_token_map, nearest_pretrained, nearest_tokens


@pytest.fixture(scope="module")
def explorer(tiny_outputs):
    return TokenExplorer(tiny_outputs)


def test_all_finished_runs_newest_first(tiny_outputs, explorer):
    runs = finished_runs(tiny_outputs)
    assert sorted(r.name.partition("-")[0] for r in runs) == ["gti", "mean"]
    assert [value for _, value in explorer.run.options] == runs
    started = [read_json(r / "run.json")["started"] for r in runs]
    assert started == sorted(started, reverse=True)


def test_stages_and_neighbours_are_those_of_the_rows(tiny_outputs):
    gti = next(r for r in finished_runs(tiny_outputs) if r.name.startswith("gti"))
    tokens = load_token_map(gti)
    assert list(tokens.stages) == ["init", "grounding", "sft"]
    rows = tokens.rows("sft")

    def cosine(a, b):
        lengths = np.maximum(np.linalg.norm(b, axis=1), 1e-9)  # the padding token's row is zero
        return (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / lengths

    near = nearest_pretrained(tokens, "sft", 3, k=5)
    expected = 1 - np.sort(cosine(rows[[3]], tokens.pretrained_rows)[0])[::-1][:5]
    assert np.allclose(near.distance, expected, atol=1e-5)
    others = cosine(rows[[3]], rows)[0]
    others[3] = -np.inf
    near = nearest_tokens(tokens, "sft", 3, k=1)
    assert near.token[0] == tokens.names[others.argmax()]


def test_search_selects_and_a_stage_keeps_the_selection(explorer):
    title = explorer.tokens.titles[0]
    explorer.search.value = title
    assert set(explorer.tokens.token_index[0]) <= set(explorer.selected)
    assert title in explorer.note.value
    frame = explorer.selection
    assert (frame["items"] == frame.titles.map(len)).all()
    carried = [explorer.tokens.names[i] for i in explorer.tokens.token_index[0]]
    assert all(title in titles for titles in frame[frame.token.isin(carried)].titles)
    for stage in explorer.tokens.stages:
        explorer.stage.value = stage
        assert list(explorer.selection.token) == list(frame.token)
        ring = explorer.figure.data[-1]
        assert np.allclose(np.c_[ring.x, ring.y], explorer.tokens.xy(stage)[explorer.selected])
    explorer.search.value = "<script>alert(1)</script>"
    assert explorer.selection.empty and "<script>" not in explorer.note.value


def test_another_run_is_read_and_a_broken_one_is_named(tiny_outputs, tmp_path):
    copy = tmp_path / "outputs"
    shutil.copytree(tiny_outputs, copy)
    explorer = TokenExplorer(copy)
    other = explorer.run.options[1][1]
    (other / "rows/sft.safetensors").write_bytes(b"damaged")
    explorer.run.value = other
    assert "not a file of new rows" in explorer.note.value and not explorer.plot.children
    explorer.run.value = explorer.run.options[0][1]
    assert explorer.plot.children == (explorer.figure,)


def test_unfinished_runs_are_left_out(tiny_outputs, tmp_path):
    copy = tmp_path / "outputs"
    shutil.copytree(tiny_outputs, copy)
    for run in finished_runs(copy):
        record = read_json(run / "run.json")
        (run / "run.json").write_text(json.dumps(record | {"status": "failed"}))
    with pytest.raises(GTIError, match="no finished run"):
        TokenExplorer(copy)


def test_the_explorer_has_no_logo_and_no_upload_button(explorer):
    assert explorer.figure._config["displaylogo"] is False and explorer.figure._config["showSendToCloud"] is False
