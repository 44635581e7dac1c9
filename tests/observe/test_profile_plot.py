"""Pictures of profiles: the numbers behind them, a page that loads nothing and trusts nothing, and what is refused."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tenth.errors import FileFormatError, MachineError, RequestError
from tenth.files import printable
from tenth.observe.profile_html import profile_page
from tenth.observe.profile_json import UNKNOWN, page_data
from tenth.observe.profile_plot import draw_profile, plot_profile
from tenth.observe.profile_view import ExpertMatrix, ProfileView, colour_range, octaves
from tenth.observe.profile_words import CAPTIONS, summary, supers_line
from tenth.routing.profile import Block, RoutingProfile
from tenth.routing.profile_file import write_profile
from tests.observe.planted import MODEL, collapsed, drawn

EVIL = "</script><script>alert(1)</script>"
KINDS = {
    "planted": lambda: drawn(taste=2.0),
    "one domain, no outputs": lambda: drawn(domains=("prose",), outputs=False),
    "collapsed": collapsed,
    "empty": lambda: RoutingProfile.empty(MODEL),
    "one expert": lambda: RoutingProfile.empty(replace(MODEL, experts=1, top_k=1, layers=(0,))),
    "many domains": lambda: drawn(domains=tuple(f"${n}^x" for n in range(9)), taste=1.5),
}


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_every_profile_is_drawn_in_both_ways(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "p.profile"
    write_profile(KINDS[kind](), path)
    plot_profile(path, tmp_path / "new" / "p.html")
    plot_profile(path, tmp_path / "new" / "p.png")
    assert sorted(one.name for one in (tmp_path / "new").iterdir()) == ["p.html", "p.png"]
    page = (tmp_path / "new" / "p.html").read_text("utf-8")
    assert _data(page)["experts"] == KINDS[kind]().model.experts
    measured = KINDS[kind]().outputs is not None
    for name, caption in CAPTIONS.items():
        assert (f"<h2>{caption.title}</h2>" in page) == (measured or name not in ("norms", "saliency", "peaks"))


def test_the_page_loads_nothing_and_strings_stay_strings() -> None:
    profile = drawn(replace(MODEL, name=f"m{EVIL}&", version=EVIL), ("code", EVIL))
    page = profile_page(ProfileView.of(profile, [_likeness(EVIL)]))
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"<(link|img|iframe|object|embed|base)\b|\bsrc=|@import|url\(|fetch\(|XMLHttp", page)
    assert "default-src 'none'" in page
    assert "alert(1)</script>" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert _data(page)["domains"]["names"] == [EVIL, "code"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def _likeness(name: str) -> ExpertMatrix:
    values_EE = np.linspace(0, 1, 64).reshape(8, 8)
    return ExpertMatrix.of(name, "how alike", "share", {1: (values_EE + values_EE.T) / 2})


def test_pages_are_small_at_48_by_128(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenth.observe.profile_view._PERMUTATIONS", 20)
    model = replace(MODEL, layers=tuple(range(48)), experts=128, top_k=8)
    found = RoutingProfile.empty(model)
    random = np.random.default_rng(0)
    for number in range(15):
        counts_LE = random.integers(10_000, 90_000, (48, 128))
        found.blocks[f"domain {number % 3}", number] = Block(int(counts_LE[0].sum()) // 8, counts_LE)
        found.counts.counts_LE += counts_LE
    found.counts.tokens = sum(block.tokens for block in found.blocks.values())
    half_LEE = random.integers(0, 9000, (48, 128, 128))
    found.pairs_LEE += half_LEE + half_LEE.transpose(0, 2, 1)
    found.outputs = drawn(outputs=True).outputs
    assert found.outputs is not None
    for part in ("counts_LE", "norms_LE", "saliency_LE", "peaks_LE"):
        setattr(found.outputs, part, random.uniform(1, 1e4, (48, 128)).astype(np.float64))
    assert len(profile_page(ProfileView.of(found))) < 1_500_000


def test_numbers_of_the_page_are_those_of_the_profile() -> None:
    profile = drawn(taste=2.0)
    view = ProfileView.of(profile)
    data = _data(profile_page(view))
    assert data["counts"] == profile.counts.counts_LE.tolist()
    np.testing.assert_allclose(data["byLayer"]["MaxVio"], profile.counts.max_violation_L, rtol=1e-3)
    assert view.domains is not None
    shares = np.frombuffer(base64.b64decode(data["domains"]["shares"]), "<u2").reshape(4, 8, 2) / 65535
    np.testing.assert_allclose(shares, view.domains.shares_LED, atol=1e-5)
    assert data["domains"]["strength"][1][0] == pytest.approx(view.domains.layers[1].strength.value, rel=1e-3)
    assert view.pairs is not None
    upper = np.frombuffer(base64.b64decode(data["matrices"][0]["values"]), "i1").reshape(4, 28)
    lift = view.pairs.lift.values_EE[2][np.triu_indices(8, 1)]
    np.testing.assert_allclose(2.0 ** (upper[2] / 32), lift, rtol=0.012)
    assert sorted(data["matrices"][0]["orders"][0]) == list(range(8))
    assert data["pairs"]["row"] == view.pairs.row
    assert "Broken tokens" not in data["byLayer"]
    assert data["outputs"]["supers"] == [list(at) for at in view.supers]


def test_specialists_are_seen_at_a_glance() -> None:
    view = ProfileView.of(drawn(taste=2.0))
    assert (view.served_LE[:, 0] == 0).all()
    assert (view.served_LE[:, 1] == 1).all()
    assert (view.served_LE[:, 2:] == -1).mean() > 0.9
    tops = view.tops()
    assert {(expert, domain) for _, expert, domain in tops} >= {(0, 0), (1, 1)}
    assert [domain for *_, domain in tops] == sorted(domain for *_, domain in tops)
    plain = ProfileView.of(drawn(taste=0.0))
    assert plain.tops() == []


def test_what_is_not_known_is_not_zero() -> None:
    view = ProfileView.of(collapsed())
    data = page_data(view)
    assert data["byLayer"]["Router entropy"] == [None] * 4
    assert data["byLayer"]["Broken tokens"] == [0, 0, 0, 1000]
    assert data["domains"] == {"why": "Not drawn: specialisation needs two domains or more, the profile has 1."}
    assert data["pairs"] == {"why": "Not drawn: each token goes to one expert, there are no pairs."}
    assert data["outputs"]["norms"]["values"][0] == [None, None, None, 2.0, None, None, None, None]
    assert np.isnan(view.loads_LE[3]).all()
    assert view.loads_LE[0].tolist() == [0, 0, 0, 8, 0, 0, 0, 0]
    facts = dict(summary(view))
    assert (facts["mean router entropy"], facts["mean MaxVio"]) == ("unknown", "7.000")
    assert facts["dead experts"] == "29 of 32"
    assert page_data(ProfileView.of(drawn(outputs=False)))["outputs"] is None


def test_other_matrices_are_shown_by_name() -> None:
    matrix = _likeness("CKA of outputs")
    data = page_data(ProfileView.of(drawn(), [matrix]))
    assert [one["name"] for one in data["matrices"]] == ["Co-activation lift", "CKA of outputs"]
    assert data["matrices"][1]["rows"] == [1]
    upper = np.frombuffer(base64.b64decode(data["matrices"][1]["values"]), "i1")
    np.testing.assert_allclose(upper / 127, matrix.values_EE[1][np.triu_indices(8, 1)], atol=0.005)
    holes = ExpertMatrix.of("m", "", "ratio", {0: np.where(np.eye(8)[::-1] > 0, np.nan, 1.0)})
    packed = page_data(ProfileView.of(drawn(), [holes]))["matrices"][1]["values"]
    assert set(np.frombuffer(base64.b64decode(packed), "i1").tolist()) == {0, UNKNOWN}


def test_layers_without_room_are_left_out_of_all_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenth.observe.profile_view._MOST_CELLS", 2 * 28)
    every = ExpertMatrix.of("CKA", "", "share", {row: np.eye(8) for row in range(4)})
    for profile in (drawn(taste=2.0), collapsed()):
        rows = [one["rows"] for one in page_data(ProfileView.of(profile, [every]))["matrices"]]
        assert len(rows[-1]) == 2
        assert all(one == rows[-1] for one in rows)
    assert page_data(ProfileView.of(collapsed(), [every.only([3])]))["matrices"] == []


def test_super_experts_lie_in_layers_with_massive_activations() -> None:
    profile = drawn()
    assert profile.outputs is not None
    profile.outputs.peaks_LE[1, 3], profile.outputs.peaks_LE[2, 4] = 900, np.nan
    layers = profile.model.layers
    told = f"L{layers[1]}E3 (900)"
    for massive, supers in ((None, [(1, 3)]), ([layers[1]], [(1, 3)]), ([layers[0]], []), ([], [])):
        view = ProfileView.of(profile, massive=massive)
        assert view.supers == supers
        assert (told in supers_line(view)) == bool(supers)
        assert ("a profile does not tell" in supers_line(view)) == (massive is None)


def test_a_figure_has_the_numbers_too() -> None:
    profile = drawn(taste=2.0)
    view = ProfileView.of(profile)
    figure = draw_profile(view)
    strength = next(axes for axes in figure.axes if axes.get_ylabel() == "phi²")
    assert view.domains is not None
    expected = [layer.strength.value for layer in view.domains.layers]
    np.testing.assert_allclose(strength.get_lines()[1].get_ydata(), expected)
    curves = next(axes for axes in figure.axes if axes.get_ylabel() == "% of the layer's work")
    drawn_LE = np.stack([np.asarray(line.get_ydata()) for line in curves.get_lines()[:4]])
    np.testing.assert_allclose(drawn_LE.sum(1), 100)
    assert (np.diff(drawn_LE, axis=1) <= 0).all()
    titles = {text.get_text() for text in figure.texts}
    assert {caption.title for caption in CAPTIONS.values()} <= titles
    assert supers_line(view) in " ".join(titles).replace("\n", " ")


def test_colours_have_ends() -> None:
    assert octaves(np.array([0.0, 0.01, 1.0, 2.0, 100.0])).tolist() == [-3, -3, 0, 1, 3]
    assert colour_range(np.array([np.nan, 0.0])) == (1.0, 2.0)
    assert colour_range(np.array([4.0, 4.0])) == (2.0, 8.0)
    assert printable("a\x00b\u202ec") == "a�b�c"
    assert printable("x" * 300, 10) == "x" * 9 + "…"


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.profile"
    write_profile(drawn(), path)
    with pytest.raises(RequestError, match=r"written as \.html, \.png, \.svg, \.pdf"):
        plot_profile(path, tmp_path / "x.jpeg")
    with pytest.raises(RequestError, match="cannot be read"):
        plot_profile(tmp_path / "none", tmp_path / "x.html")
    (tmp_path / "file.html").write_text("")
    with pytest.raises(RequestError, match="is the profile itself"):
        plot_profile(tmp_path / "file.html", tmp_path / "file.html")
    with pytest.raises(FileFormatError, match="no routing profile"):
        plot_profile(tmp_path / "file.html", tmp_path / "x.html")
    with pytest.raises(MachineError, match="cannot be written"):
        plot_profile(path, tmp_path / "file.html" / "x.html")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MachineError, match=r"pictures need matplotlib: `pip install 'tenth\[train\]'`"):
        plot_profile(path, tmp_path / "x.png")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file.html", "p.profile"]
