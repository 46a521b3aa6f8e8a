"""The law that is fitted is the one that made the losses; the command line measures, fits and draws."""

import json
import sys

import numpy as np
import pytest
from helpers import EXAMPLES, assert_close, example

import numllama as nl
from numllama.data.synthetic import write_play

LAWS = [(1.69, 406.4, 410.7, 0.34, 0.28), (1.2, 40.0, 300.0, 0.35, 0.45), (0.5, 8.0, 2000.0, 0.2, 0.6)]


def grid():
    """Parameters and tokens of 30 runs."""
    sizes, budgets = np.geomspace(5e3, 1e6, 6), np.geomspace(1e5, 2e6, 5)
    return tuple(values.ravel() for values in np.meshgrid(sizes, budgets))


def values(law):
    return [law.E, law.A, law.B, law.alpha, law.beta]


@pytest.mark.parametrize("constants", LAWS)
def test_the_constants_of_a_law_are_found_again(constants):
    laws, (n, d) = example("scaling_laws"), grid()
    law = laws.fit(n, d, laws.Law(*constants)(n, d))
    np.testing.assert_allclose(values(law), constants, rtol=1e-4)


def test_two_wrong_losses_hardly_move_the_law():
    laws, (n, d) = example("scaling_laws"), grid()
    losses = laws.Law(*LAWS[1])(n, d)
    wrong = losses.copy()
    wrong[[4, 17]] *= 1.3, 0.8
    assert abs(laws.fit(n, d, wrong)(n, d) / losses - 1).max() < 0.002
    parabola = laws.fit(n, d, wrong, delta=1e9)  # least squares are pulled
    assert abs(parabola(n, d) / losses - 1).max() > 0.03


def test_noise_of_a_percent_leaves_a_law_that_predicts_within_it():
    laws, (n, d) = example("scaling_laws"), grid()
    true = laws.Law(*LAWS[1])
    noise = np.random.default_rng(0).normal(0, 0.01, len(n))
    law = laws.fit(n, d, true(n, d) * np.exp(noise))
    assert abs(law(n, d) / true(n, d) - 1).max() < 0.02


def test_the_slopes_of_the_law_are_its_derivatives():
    laws, (n, d) = example("scaling_laws"), grid()
    law_theta = np.array([0.2, 3.0, 5.0, 0.3, 0.4])
    log_loss, slopes = laws.log_law(law_theta, n, d)
    E, A, B = np.exp(law_theta[:3])
    assert_close(log_loss, np.log(laws.Law(E, A, B, 0.3, 0.4)(n, d)))
    for i in range(5):
        h = 1e-5 * np.eye(5)[i]
        numeric = (laws.log_law(law_theta + h, n, d)[0] - laws.log_law(law_theta - h, n, d)[0]) / 2e-5
        assert_close(slopes[:, i], numeric, rtol=1e-8)


def test_the_best_size_for_a_cost_has_the_lowest_loss():
    law, cost = example("scaling_laws").Law(*LAWS[1]), 6e12
    sizes = np.geomspace(1e3, 1e8, 20_001)
    assert law.best_size(cost) == pytest.approx(sizes[law(sizes, cost / 6 / sizes).argmin()], rel=1e-3)


def test_the_command_line_measures_fits_and_draws(tmp_path, monkeypatch, capsys):
    laws = example("scaling_laws")
    play = tmp_path / "play.txt"
    play.write_text(write_play(8_000), encoding="utf-8")
    monkeypatch.setattr(laws, "SIZES", [(16, 1), (16, 2), (32, 1)])
    monkeypatch.setattr(sys, "argv", ["scaling_laws.py", "--data", str(play), "--steps", "16", "--out", str(tmp_path)])
    laws.main()
    out = capsys.readouterr().out
    kept = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["runs"]
    config = nl.ModelConfig(vocab_size=40, dim=16, n_layers=2, n_heads=1)
    assert kept[1]["parameters"] == nl.count_parameters(config) - 2 * 40 * 16
    assert [tokens for tokens, _ in kept[0]["losses"]] == [1024 * step for step in (2, 3, 4, 6, 8, 12, 16)]
    law = laws.fit(*laws.points(kept))
    assert str(law) in out
    assert laws.table(kept, law) in out
    assert f"| {kept[2]['parameters']:,} | {kept[2]['losses'][0][1]:.3f} ({law(kept[2]['parameters'], 2048):.3f}) |" in out
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_the_law_fits_what_the_book_shows():
    path = EXAMPLES.parent / "docs" / "chapters" / "scaling_laws.json"
    if not path.exists():
        pytest.skip("tests without the documents")
    laws, runs = example("scaling_laws"), json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert [(run["dim"], run["layers"]) for run in runs] == laws.SIZES
    n, d, losses = laws.points(runs)
    law = laws.fit(n, d, losses)
    assert np.median(abs(law(n, d) / losses - 1)) < 0.01
    assert 1 < law.E < losses.min()


def test_what_cannot_be_is_one_sentence_and_exit_code_two(tmp_path, monkeypatch, capsys):
    (tmp_path / "scaling.json").write_text("{}", encoding="utf-8")
    for args, says in (
        (["--out", str(tmp_path)], f"{tmp_path} already holds results: choose another --out"),
        (["--steps", "0"], "steps is 0, but must be at least 16, because losses are read at sixteenths of the run"),
        (["--device", "tpu"], "device is 'tpu', but must be 'cpu', 'cuda' or 'cuda:N'"),
    ):
        monkeypatch.setattr(sys, "argv", ["scaling_laws.py", "--out", str(tmp_path / "out"), *args])
        with pytest.raises(SystemExit) as end:
            example("scaling_laws").main()
        assert end.value.code == 2
        assert capsys.readouterr().err == f"scaling_laws.py: {says}\n"
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "scaling.json").read_text(encoding="utf-8") == "{}"
