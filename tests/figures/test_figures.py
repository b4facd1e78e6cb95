"Every figure on hostile names, at scale, and through the disk."

import json
import re

import numpy as np
import pandas as pd
import plotly.io as pio
import pytest

from gti_nb.core import GTIError
from gti_nb.diagnostics.summary import diagnose
from gti_nb.figures.codes import codes_figure, collision_table, tree_figure
from gti_nb.figures.comparisons import gain_figure, interval_figure, relative_gain
from gti_nb.figures.curves import curve_figure, loss_figure
from gti_nb.figures.embeddings import cosine_figure, project, scatter_figure, spectrum_figure
from gti_nb.figures.metrics import metric_figure
from gti_nb.figures.quantizers import live_training, ranking_figure, residual_figure, training_figure
from gti_nb.figures.stages import rsa_figure, spread_figure
from gti_nb.figures.style import CONFIG, PALETTE, arm_colours, live_figure, save_figure, shown
from gti_nb.sid.codes import SemanticIds

EVIL = "<img src=x onerror=alert(1)></script>"


def study(arms=("gti", "mean"), seeds=(0, 1)):
    "Frames of a made-up study: diagnostics, losses and metrics."
    rng = np.random.default_rng(0)
    pretrained = rng.normal(size=(200, 16)) + 0.5
    sids = type("Sids", (), {"codebooks": [rng.normal(size=(8, 4)), rng.normal(size=(8, 4))]})
    states = {"init": np.tile(pretrained.mean(0), (16, 1)), "sft": rng.normal(size=(16, 16))}
    found = [(a, s, stage, diagnose(rows, pretrained, sids, seed=s)) for a in arms for s in seeds for stage, rows in states.items()]
    diagnostics = pd.DataFrame([dict(arm=a, seed=s, stage=stage, **d.numbers) for a, s, stage, d in found])
    losses = pd.DataFrame(
        [
            dict(arm=a, seed=s, direction=way, step=i, loss=4 / i)
            for a in arms
            for s in seeds
            for way in ("text_to_sid", "next_item")
            for i in (1, 2, 3)
        ]
    )
    metrics = pd.DataFrame(
        [
            dict(arm=a, seed=s, metric=m, k=k, value=k / 100, low=k / 110, high=k / 90)
            for a in (*arms, "popularity")
            for s in seeds
            for m in ("recall", "ndcg")
            for k in (5, 10, 20)
        ]
    )
    return diagnostics, losses, metrics, {a: d for a, _, _, d in found}, pretrained, states


def comparison(arms):
    "What `compare` says of a made-up study, the second arm being the baseline."
    numbers = dict(gain=0.2, low=-0.1, high=0.5, p=0.04, p_holm=0.08, p_users=0.01)
    return pd.DataFrame(
        [
            dict(metric=f"{m}@{k}", arm=a, mean=k / 100, **(numbers if a != arms[1] else dict.fromkeys(numbers, np.nan)))
            for m in ("recall", "precision[good]")
            for k in (5, 10, 20)
            for a in arms
        ]
    ).set_index(["metric", "arm"])


def history(epochs=30, levels="ab"):
    "What an RQ-VAE reports of a training, measured every tenth epoch."
    losses = dict(loss=2.0, reconstruction=1.0, quantization=1.0)
    rows = []
    for epoch in range(1, epochs + 1):
        measured = epoch % 10 == 0
        row = dict(epoch=epoch, **{name: value / epoch for name, value in losses.items()})
        row["collision"] = 1 / epoch if measured else np.nan
        row |= {f"utilization_{a}": 1 - 1 / epoch if measured else np.nan for a in levels}
        rows.append(row)
    return pd.DataFrame(rows)


def all_figures(arms, names=None):
    diagnostics, losses, metrics, found, pretrained, states = study(arms)
    return {
        "spectrum": spectrum_figure(
            {a: d.arrays["spectrum"] for a, d in found.items()} | {"random": found[arms[0]].arrays["spectrum_random"]}
        ),
        "cosine": cosine_figure({a: d.arrays["cosine_new"] for a, d in found.items()}, {"level 1": 8, "level 2": 8}, labels=names),
        "scatter": scatter_figure(states, pretrained, [8, 8], names=names, pretrained_names=names and names * 13),
        "spread": spread_figure(diagnostics),
        "rsa": rsa_figure(diagnostics),
        "loss": loss_figure(losses),
        "metric": metric_figure(metrics),
        "gain": gain_figure(metrics, baseline=arms[1]),
        "interval": interval_figure(comparison(arms)),
        "curve": curve_figure(losses.assign(line=losses.arm, x=losses.step, value=losses.loss), "Loss", "optimizer step", "loss"),
        "codes": codes_figure(np.arange(40).reshape(20, 2) % 16, [16, 16]),
        "tree": tree_figure(SemanticIds(np.arange(32).reshape(16, 2) % 5), names),
        "residual": residual_figure({a: [0.5, 0.3] for a in arms}),
        "ranking": ranking_figure(
            pd.DataFrame([dict(quantizer=a, seed=s, overlap=s + 1) for a in arms for s in (0, 1)]), {"overlap": "neighbours kept"}
        ),
        "training": training_figure(history()),
    }


def test_every_figure_survives_json_and_uses_one_look():
    for name, fig in all_figures(("gti", "mean")).items():
        back = pio.from_json(fig.to_json())
        assert json.loads(back.to_json()) == json.loads(fig.to_json()), name
        assert fig.layout.title.text and fig.layout.plot_bgcolor is None and fig.layout.template.layout.plot_bgcolor == "white", name
        assert len(fig.data) and (fig.layout.xaxis.title.text or name in ("cosine", "spread", "rsa", "tree", "ranking")), name


def test_names_from_data_are_escaped_in_every_figure(tmp_path):
    names = [f"{EVIL}{i}" for i in range(16)]
    for name, fig in all_figures((f"a{EVIL}", f"b{EVIL}"), names).items():
        visible = [fig.layout.title.text, *(a.text for a in fig.layout.annotations)]
        for trace in fig.data:
            visible += [trace.name or "", trace.hovertemplate or "", *(trace.text if isinstance(trace.text, (list, tuple)) else [])]
            if trace.type == "heatmap":
                visible += [*trace.x, *trace.y]
            if trace.type == "sunburst":
                visible += [*trace.labels, *trace.hovertext]
            if name == "ranking":
                visible += [*trace.y]
        assert not any("<img" in v for v in visible if v), name
        page = save_figure(fig, tmp_path, name).read_text()
        assert "<img" not in page and page.count("</script>") == 3 == page.count("<script"), name


def test_a_hostile_arm_reads_back_as_it_was_called():
    assert shown(EVIL) == "&lt;img src=x onerror=alert(1)&gt;&lt;/script&gt;"
    assert shown('say "no" & go') == 'say "no" &amp; go'


def test_one_arm_has_one_colour_in_every_figure():
    arms = ("mean", "gti", "normal_matched")
    expected = {"gti": PALETTE[0], "mean": PALETTE[1], "normal_matched": PALETTE[2]}
    for name, fig in all_figures(arms).items():
        for trace in fig.data:
            if getattr(trace, "legendgroup", None) not in expected:
                continue
            colours = {c for c in (trace.line.color if trace.type == "scatter" else None, trace.marker.color) if c and c not in ("white",)}
            assert colours <= {expected[trace.legendgroup]}, name
    assert arm_colours(["gti"])["gti"] == arm_colours(arms)["gti"]
    one = metric_figure(study()[2].query("arm == 'mean'"), colours=arm_colours(arms))
    assert {t.marker.color for t in one.data if t.type == "bar"} == {PALETTE[1]}


def test_a_single_arm_seed_stage_and_level_is_enough():
    diagnostics, losses, metrics, *_ = study(("mean",), (0,))
    diagnostics = diagnostics[diagnostics.stage == "sft"]
    for fig in (spread_figure(diagnostics), rsa_figure(diagnostics), loss_figure(losses), metric_figure(metrics), gain_figure(metrics)):
        assert fig.to_json()


def test_collapsed_rows_make_figures_not_errors():
    zeros = spectrum_figure({"mean": np.zeros(5), "gti": np.array([2.0, 1.0])})
    assert zeros.data[0].name == "mean (all zero)" and zeros.data[1].name.startswith("gti (effective rank 1.9")
    flat = project(np.ones((5, 3)), np.ones((4, 3)))
    assert np.isfinite(flat.axes).all() and flat.share.tolist() == [0, 0]


@pytest.mark.parametrize("missing", ["arm", "metric", "k", "value"])
def test_a_missing_column_is_named(missing):
    metrics = study()[2].drop(columns=missing)
    for figure in (metric_figure, gain_figure):
        with pytest.raises(GTIError, match=f"columns {missing} are missing"):
            figure(metrics)


def test_gain_needs_the_baseline_of_the_same_seed():
    metrics = study()[2]
    without = metrics[~((metrics.arm == "mean") & (metrics.seed == 1))]
    assert set(relative_gain(without).seed) == {0}
    assert set(relative_gain(metrics).seed) == {0, 1}
    assert relative_gain(metrics.assign(value=metrics.value * np.where(metrics.arm == "gti", 1.5, 1))).gain.tolist() == pytest.approx(
        [0.5] * 12
    )


def test_large_figures_stay_small_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(1024, 8)).astype(np.float32)
    pretrained = rng.normal(size=(49_152, 8)).astype(np.float32)
    square = cosine_figure(
        {"gti": diagnose(rows, pretrained).arrays["cosine_new"]},
        {f"level {i}": 256 for i in (1, 2, 3, 4)},
        [f"<a_{i}>" for i in range(1024)],
    )
    assert len(save_figure(square, tmp_path, "cosine").read_bytes()) < 2_000_000
    cloud = scatter_figure({"init": rows, "grounding": rows, "sft": rows}, pretrained, [256] * 4)
    assert len(save_figure(cloud, tmp_path, "scatter").read_bytes()) < 500_000


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [1, 7, 50, 10_000])
def test_the_tree_is_whole_and_true(seed, most):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (120, 3))
    sids = SemanticIds(codes)
    sun = tree_figure(sids, [f"film {i}" for i in range(120)], most=most).data[0]
    prefixes = {tuple(c[:length]) for c in codes.tolist() for length in (1, 2, 3)}

    def size(key):
        return sum(tuple(c[: len(key)]) == key for c in codes.tolist())

    drawn = [tuple(map(int, i.split("/"))) for i in sun.ids[1:]]
    assert len(drawn) == len(set(drawn)) == min(most, len(prefixes)) and set(drawn) <= prefixes
    assert sun.ids[0] == "all" and sun.values[0] == 120 and set(sun.parents) <= {"", *sun.ids}
    assert [size(key) for key in drawn] == list(sun.values[1:])
    assert min(map(size, drawn)) >= max(map(size, prefixes - set(drawn)), default=0)
    for key, text in zip(drawn, sun.hovertext[1:], strict=True):
        members = {f"film {i}" for i, c in enumerate(codes.tolist()) if tuple(c[: len(key)]) == key}
        listed = text.split("<br>")[1:]
        assert set(listed[:4]) <= members and (
            len(listed) == len(members) if len(members) <= 4 else listed[4] == f"and {len(members) - 4} more"
        )


def test_shared_semantic_ids_against_a_loop():
    codes = np.random.default_rng(0).integers(0, 3, (60, 3))
    titles = [f"film {i}" for i in range(60)]
    for levels in (1, 2, 3, None):
        ids = ["".join(f"<{a}_{k}>" for a, k in zip("abc", c[:levels], strict=False)) for c in codes.tolist()]
        expected = {i: [t for t, j in zip(titles, ids, strict=True) if j == i] for i in ids if ids.count(i) > 1}
        table = collision_table(SemanticIds(codes), titles, levels, most=1000)
        assert dict(zip(table.semantic_id, table["items"], strict=True)) == {i: len(t) for i, t in expected.items()}
        assert table["items"].is_monotonic_decreasing
        for row in table.itertuples():
            assert row.titles.removesuffix(" | …").split(" | ") == expected[row.semantic_id][:8]
    assert len(collision_table(SemanticIds(codes), titles, 1, most=2)) == 2
    assert "<img" not in collision_table(SemanticIds([[0], [0]]), [EVIL, EVIL])._repr_html_()


def test_a_big_catalogue_makes_a_small_tree(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (200_000, 3))
    fig = tree_figure(SemanticIds(codes), ["a title of some forty characters in length"] * len(codes))
    assert len(fig.data[0].ids) == 2001 and fig.layout.annotations[0].text.startswith("the 2,000 largest of ")
    assert len(save_figure(fig, tmp_path, "tree").read_bytes()) < 1_200_000


def test_a_live_training_ends_as_the_figure_of_its_history():
    rows = history()
    curves, update = live_training(levels=2, seconds=0)
    for row in rows.to_dict("records"):
        update(row)
    for line, whole in zip(curves.data, training_figure(rows).data, strict=True):
        assert (line.name, list(line.x), list(line.y), line.mode) == (whole.name, list(whole.x), list(whole.y), whole.mode)
    slow, update = live_training(levels=2, seconds=1000)
    for row in rows.to_dict("records"):
        update(row)
    assert len(slow.data[0].x) == 1  # only the first, the others came too soon


def test_saving_is_whole_repeatable_and_shares_one_library(tmp_path):
    figures = all_figures(("gti", "mean"))
    for name, fig in figures.items():
        save_figure(fig, tmp_path / "figures", name)
    first = {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert set(first) == {"plotly.min.js"} | {f"{n}.{kind}" for n in figures for kind in ("html", "json")}
    assert b'src="plotly.min.js"' in first["rsa.html"] and b"cdn" not in first["rsa.html"]
    for name, fig in all_figures(("gti", "mean")).items():
        save_figure(fig, tmp_path / "figures", name)
    assert first == {p.name: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    assert json.loads(first["codes.json"])["layout"]["title"]["text"] == "Items per code"


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a b", "<x>"])
def test_a_file_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(GTIError, match="name: got"):
        save_figure(spectrum_figure({"gti": np.ones(3)}), tmp_path, name)
    assert not list(tmp_path.iterdir())


UPLOADS = re.compile("chart-studio|plot\\.ly|showLink", re.I)


def test_no_figure_has_a_logo_or_an_upload_button(tmp_path, monkeypatch):
    monkeypatch.setattr(pio.renderers, "default", "plotly_mimetype")
    sent = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, raw: sent.append(bundle))
    for name, fig in all_figures(("gti", "mean")).items():
        assert CONFIG["displaylogo"] is False and CONFIG["showSendToCloud"] is False
        assert fig._repr_mimebundle_()["application/vnd.plotly.v1+json"]["config"] == CONFIG, name
        fig.show()
        fig._ipython_display_()
        assert live_figure(fig)._config == CONFIG, name
        page = save_figure(fig, tmp_path, name).read_text()
        assert '"displaylogo": false' in page and '"showSendToCloud": false' in page and not UPLOADS.search(page), name
    assert len(sent) == 2 * len(all_figures(("gti", "mean")))
    assert all(bundle["application/vnd.plotly.v1+json"]["config"] == CONFIG for bundle in sent)
    assert live_training(levels=2)[0]._config == CONFIG
