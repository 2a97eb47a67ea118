"""Mixup and CutMix: their distribution, their draws, both engines against the reference, and training on from anywhere."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from engines import both
from numpy.typing import NDArray
from pictures import BLUE_STEP
from reads import RECIPE as SMALL_FINE
from reads import host_reads, walk
from runs import (
    ONE_THREAD,
    TINY,
    Capture,
    Patch,
    batches_seen,
    never,
    same_batch,
    same_weights,
    tiny_context,
    tiny_job,
)
from scipy import stats
from torch.nn import functional

from greyhound import begin, train
from greyhound.cache.cli import Stopped
from greyhound.cache.store import Pack
from greyhound.model.report import figures
from greyhound.model.run import AVERAGED, LAST, METRICS
from greyhound.model.schedule import Phase
from greyhound.pipelines.augment import Augment, draw_numbers
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Loader, Position
from greyhound.pipelines.mixing import beta, draw_mixing, mix, shares_of
from greyhound.recipe import Averaging

MIXUP, CUTMIX = Augment(size=32, mixup=0.4), Augment(size=32, cutmix=1.0)
RICH = Augment(size=32, randaugment=2, mixup=0.4, cutmix=1.0)
MANY = np.arange(20_000)
RECIPE = replace(TINY, augment=RICH, averaging=Averaging(steps=1, rate=0.002))


def taken(
    pack: Pack, engine: Any, augment: Augment, batches: int | None = None, **options: Any
) -> list[Batch]:
    """The first batches of a training's loader, or an epoch's."""
    resources = Resources(engine, "cpu", options.pop("threads", 1), options.pop("prefetch", 2))
    options = {"batch_size": 6, "shuffle": True, "seed": 5} | options
    with Loader(pack, augment, np.arange(20), resources, **options) as stream:
        return list(itertools.islice(stream, batches) if batches else stream.epoch())


def pixels(batch: Batch) -> NDArray[np.float32]:
    """`[B, K, S, S, 3]`."""
    images = batch.images if batch.images.ndim == 5 else batch.images[:, None]
    return images.permute(0, 1, 3, 4, 2).numpy()


# --- the draws ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.2, 0.4, 1.0, 2.0, 8.0, 100.0, 1000.0])
def test_numbers_are_of_the_beta_distribution(alpha: float) -> None:
    """Against scipy's quantiles; both ends are as far from their middle, and nothing is beyond them."""
    uniform = (np.arange(2000) + 0.5) / 2000
    found = beta(uniform, alpha)
    assert found.min() >= 0 and found.max() <= 1 and (np.diff(found) >= 0).all()
    np.testing.assert_allclose(found, stats.beta.ppf(uniform, alpha, alpha), atol=2e-5)
    np.testing.assert_allclose(found, 1 - found[::-1], atol=1e-12)
    ends = beta(np.array([2.0**-33, 1 - 2.0**-33]), alpha)
    assert np.isfinite(ends).all() and ends[0] <= found[0] and ends[1] >= found[-1]


def test_shares_are_beta_distributed_and_each_method_is_as_likely() -> None:
    mixing = draw_mixing(replace(RICH, size=8), 0, 0, MANY)
    cuts = np.isin(mixing, (0, 1)).all(axis=(1, 2))
    assert abs(cuts.mean() - 0.5) < 0.01
    for augment, alpha in ((replace(MIXUP, size=8), 0.4), (replace(MIXUP, size=8, mixup=2.0), 2.0)):
        shares = shares_of(draw_mixing(augment, 0, 0, MANY))
        assert stats.kstest(shares, stats.beta(alpha, alpha).cdf).pvalue > 0.01
    assert stats.kstest(mixing[~cuts][:, 0, 0], stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_a_box_is_where_the_paper_puts_it_and_its_share_is_its_pixels() -> None:
    """Against the definition, pixel by pixel; sides of sqrt(share), the centre anywhere, cut off at the edge."""
    numbers = draw_numbers(3, 2, MANY[:300], 1, ("share", "method", "across", "down"), 0x200)
    mixing = draw_mixing(CUTMIX, 3, 2, MANY[:300], 1)
    for row in range(300):
        share, _, x, y = (values[row] for values in numbers.values())  # Beta(1, 1) is uniform
        half = 16 * np.sqrt(share)
        down, across = np.mgrid[:32, :32] + 0.5
        inside = (np.abs(across - 32 * x) < half) & (np.abs(down - 32 * y) < half)
        assert np.array_equal(np.outer(*mixing[row]), inside)
        assert shares_of(mixing[row]) == np.float32(inside.sum() / 1024)
    boxes = draw_mixing(replace(CUTMIX, size=200), 0, 0, MANY[:2000])
    numbers = draw_numbers(0, 0, MANY[:2000], 0, ("share", "method", "across", "down"), 0x200)
    reach = np.sqrt(numbers["share"]) / 2
    within = (np.minimum(numbers["across"], 1 - numbers["across"]) > reach) & (
        np.minimum(numbers["down"], 1 - numbers["down"]) > reach
    )
    assert within.sum() > 100
    np.testing.assert_allclose(shares_of(boxes)[within], numbers["share"][within], atol=0.02)


def test_a_mixing_depends_on_seed_epoch_id_and_view_alone() -> None:
    ids, views = np.array([4, 17, 17, 4_000_000_000, 0]), np.array([0, 1, 7, 1, 1])
    together = draw_mixing(RICH, 3, 2, ids, views)
    assert together.dtype == np.float32 and together.shape == (5, 2, 32)
    assert np.array_equal(together, draw_mixing(replace(RICH, rotation=0, randaugment=0), 3, 2, ids, views))
    for row in range(5):
        assert np.array_equal(draw_mixing(RICH, 3, 2, ids[[row]], int(views[row]))[0], together[row])
    tuples = [*np.eye(4, dtype=int).tolist(), (0, 0, 0, 0)]
    found = [draw_mixing(MIXUP, seed, epoch, np.array([row]), view) for seed, epoch, row, view in tuples]
    assert len({each.tobytes() for each in found}) == 5
    assert draw_mixing(RICH, 0, 0, ids[:0]).shape == (0, 2, 32)


def test_a_mixing_is_the_same_for_ever() -> None:
    """A change of these numbers changes every mixed picture: then say so in the changelog."""
    np.testing.assert_allclose(
        shares_of(draw_mixing(MIXUP, 1, 2, MANY[:3])), [0.046452, 0.407020, 0.535403], atol=2e-6
    )
    assert draw_mixing(CUTMIX, 1, 2, MANY[:3]).sum(axis=2).tolist() == [
        [14.0, 7.0],
        [13.0, 20.0],
        [15.0, 21.0],
    ]


# --- batches ------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("augment", [MIXUP, CUTMIX, RICH], ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("views", [1, 2])
def test_both_engines_mix_as_the_reference(
    coded_pack: Pack, engine: str, augment: Augment, views: int
) -> None:
    plain = taken(coded_pack, engine, replace(augment, mixup=0.0, cutmix=0.0), 6, views=views)
    mixed = taken(coded_pack, engine, augment, 6, views=views)
    for number, (before, after) in enumerate(zip(plain, mixed, strict=True)):
        rows = after.ids.numpy()
        every, view = np.repeat(rows, views), np.tile(np.arange(views), len(rows))
        mixing = draw_mixing(augment, 5, number // 4, every, view).reshape(len(rows), views, 2, 32)
        np.testing.assert_allclose(pixels(after), oracle.mix(pixels(before), mixing), atol=1e-6)
        assert after.shares is not None and before.shares is None
        assert np.array_equal(after.shares, shares_of(mixing))
        assert after.labels.equal(before.labels) and len(before.examples()) == 2


@both
def test_what_shows_through_a_box_is_the_image_whose_label_comes_with_it(
    coded_pack: Pack, engine: str
) -> None:
    """Blue says which image a pixel is of: the share counts the pixels of the one before."""
    seen = 0
    for batch in taken(coded_pack, engine, replace(CUTMIX.centre(), cutmix=1.0), 8):
        images, labels, own, others, shares = batch.examples()
        blue = np.floor(255 * images[:, 2].numpy() / BLUE_STEP)
        for place, row in enumerate(batch.ids.tolist()):
            partner = int(batch.ids[place - 1])
            mixed_in = (np.abs(blue[place] - partner) < 1).mean()
            assert (np.abs(blue[place] - row) < 1).mean() == pytest.approx(float(own[place]), abs=0.02)
            assert mixed_in == pytest.approx(float(shares[place]), abs=0.02)
            assert [int(labels[place]), int(others[place])] == [row >= 9, partner >= 9]
            seen += 0.2 < mixed_in < 0.8
    assert seen > 5


def test_weights_and_views_go_with_their_images(coded_pack: Pack) -> None:
    weights = np.arange(len(coded_pack), dtype=np.float32) / 4
    for batch in taken(coded_pack, "threads", RICH, 4, views=3, weights=weights):
        images, labels, own, others, shares = batch.examples()
        assert batch.shares is not None
        for number, (place, view) in enumerate(np.ndindex(len(batch.ids), 3)):
            share = float(batch.shares[place, view])
            row, partner = int(batch.ids[place]), int(batch.ids[place - 1])
            assert [int(labels[number]), int(others[number])] == [row >= 9, partner >= 9]
            assert float(own[number]) == pytest.approx(row / 4 * (1 - share))
            assert float(shares[number]) == pytest.approx(partner / 4 * share)
        assert len(images) == number + 1


@both
def test_a_share_of_a_batch_mixes_among_itself_and_one_image_stays_as_it_is(
    coded_pack: Pack, engine: str
) -> None:
    options: dict[str, Any] = {"batch_size": 7, "world_size": 3}
    for rank in range(3):
        plain = taken(coded_pack, engine, replace(RICH, mixup=0.0, cutmix=0.0), rank=rank, **options)
        for before, after in zip(plain, taken(coded_pack, engine, RICH, rank=rank, **options), strict=True):
            mixing = draw_mixing(RICH, 5, 0, after.ids.numpy())[:, None]
            np.testing.assert_allclose(pixels(after), oracle.mix(pixels(before), mixing), atol=1e-6)
    plain = taken(coded_pack, engine, replace(RICH, mixup=0.0, cutmix=0.0), batch_size=1)
    alone = taken(coded_pack, engine, RICH, batch_size=1)
    for before, after in zip(plain, alone, strict=True):
        _, labels, own, others, shares = after.examples()
        assert after.images.equal(before.images)
        assert labels.equal(others) and float(own + shares) == pytest.approx(1)
    _, empty = taken(coded_pack, engine, RICH, batch_size=19, rank=1, world_size=2, shuffle=False, epochs=1)
    assert [len(each) for each in (empty.ids, *empty.examples())] == [0] * 6


@both
def test_the_same_bits_for_any_threads_and_from_anywhere(coded_pack: Pack, engine: str) -> None:
    whole = taken(coded_pack, engine, RICH, 9)
    assert all(batch.shares is not None for batch in whole)
    count = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert all(map(same_batch, whole, taken(coded_pack, engine, RICH, 9, threads=3, prefetch=5)))
    finally:
        torch.set_num_threads(count)
    done = 0
    for number, batch in enumerate(whole[:8]):
        done += len(batch.ids)
        rest = taken(coded_pack, engine, RICH, 8 - number, start=Position(*divmod(done, 20)))
        assert all(map(same_batch, whole[number + 1 :], rest))


def test_a_mixed_batch_lies_as_every_batch_does_and_leaves_the_engines_own_alone(coded_pack: Pack) -> None:
    (batch,) = taken(coded_pack, "threads", RICH, 1)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    images, mixing = torch.rand(4, 1, 8, 8, 3), torch.rand(4, 1, 2, 8)
    before = images.clone()
    found = mix(images, mixing)
    assert images.equal(before)
    np.testing.assert_allclose(found, oracle.mix(images.numpy(), mixing.numpy()), atol=1e-6)


def test_nothing_but_training_mixes(colour_pack: Pack) -> None:
    assert not RICH.crops().mixes and not RICH.centre().mixes and RICH.crops().randaugment == 0
    titles: dict[str, bool] = {}

    def look(title: str, _: Any, batch: Batch) -> None:
        titles[title.split()[0]] = batch.shares is not None

    recipe = replace(RECIPE, phases=(Phase(epochs=1, high=0.01, low=0.002),))
    with batches_seen(look), tiny_context(colour_pack, recipe) as context:
        train.train_epoch(context, context.state.network)
        context.validate(context.state.network, "validating")
    assert titles == {"training": True, "validating": False}


# --- training -----------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_mixed_targets(colour_pack: Pack) -> None:
    """Labels smoothed and mixed, as torch takes them for probabilities, times no weight but the recipe's."""
    with tiny_context(colour_pack, replace(RECIPE, label_smoothing=0.2)) as context:
        loss, batch = context.loss(), next(iter(context.training))
        _, labels, *rest = batch.examples()
        assert batch.shares is not None
        logits, shares = torch.randn(len(labels), 3), batch.shares
        hot = [functional.one_hot(each, 3) for each in (labels, labels.roll(1))]
        targets = 0.1 + 0.7 * (hot[0] * (1 - shares) + hot[1] * shares)
        torch.testing.assert_close(loss(logits, labels, *rest), functional.cross_entropy(logits, targets))
        assert not loss(logits, labels, *rest).isclose(loss(logits, labels))


@pytest.mark.parametrize("steps", [8, 16])
def test_a_resumed_run_is_the_run(mixed_run: Path, colour_pack: Pack, tmp_path: Path, steps: int) -> None:
    asked = itertools.count()
    with pytest.raises(Stopped):
        train.train(
            tiny_job(colour_pack.path, tmp_path / "run", recipe=RECIPE),
            lambda: 15 if next(asked) >= steps else None,
        )
    train.train(tiny_job(colour_pack.path, tmp_path / "run", resume=True, recipe=RECIPE), never)
    for name in (LAST, AVERAGED):
        assert same_weights(tmp_path / "run" / name, mixed_run / name), name
    assert (tmp_path / "run" / METRICS).read_bytes() == (mixed_run / METRICS).read_bytes()


@pytest.fixture(scope="module")
def mixed_run(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training with everything, which nobody stopped."""
    out = tmp_path_factory.mktemp("mixed") / "run"
    train.train(tiny_job(colour_pack.path, out, recipe=RECIPE), never)
    return out


def test_mixing_changes_a_training(colour_pack: Pack) -> None:
    losses = set()
    for augment in (RICH, replace(RICH, mixup=0.0, cutmix=0.0), RICH):
        with tiny_context(colour_pack, replace(RECIPE, augment=augment)) as context:
            train.train_epoch(context, context.state.network)
            losses.add(context.state.loss_sum)
    assert len(losses) == 2


def test_the_picture_shows_what_the_network_gets(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Of class images one after another, each with a share of the one above it; evaluation's column without."""
    sheets: dict[str, Any] = {}
    calm = replace(
        RICH, randaugment=0, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
    )  # nothing is clipped
    monkeypatch.setattr(
        figures, "image_sheet", lambda path, sheet, _: sheets.update({path.parent.name: sheet})
    )
    for name, augment in (("plain", replace(calm, mixup=0.0, cutmix=0.0)), ("mixed", calm)):
        with tiny_context(colour_pack, replace(RECIPE, augment=augment), out=tmp_path / name) as context:
            begin.draw_pictures(context)
    assert np.array_equal(sheets["plain"][:, 0], sheets["mixed"][:, 0])
    assert not np.array_equal(sheets["plain"][:, 1:], sheets["mixed"][:, 1:])
    ids = colour_pack.ids("train")[::7]
    for epoch in range(RECIPE.epochs):
        plain, mixed = (sheets[name][:, 1 + epoch, None].astype(np.float32) for name in ("plain", "mixed"))
        mixing = draw_mixing(calm, RECIPE.seed, epoch, ids)[:, None]
        np.testing.assert_allclose(mixed, oracle.mix(plain, mixing), atol=1.01)  # levels, rounded twice


def test_micro_batches_are_the_step(colour_pack: Pack) -> None:
    found = []
    for size in (0, 5):
        recipe = replace(RECIPE, batch_size=24, views=3, freeze_bn=True, micro_batch=size)
        with tiny_context(colour_pack, recipe) as context:
            train.train_epoch(context, context.state.network)
            found.append((context.state.loss_sum, context.state.network.state_dict()))
    (whole, weights), (parts, others) = found
    assert parts == pytest.approx(whole, rel=1e-5)
    assert all(torch.allclose(others[name], value, atol=1e-5) for name, value in weights.items())


def test_steps_repeat_bit_for_bit_and_a_dry_run_runs(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=RECIPE)
    assert train.train(replace(job, verify_determinism=True), never) == 0
    assert capsys.readouterr().out.endswith("equal, bit for bit\n")
    assert train.train(replace(job, dry_run=True), never) == 0
    assert not (tmp_path / "run").exists()


def test_a_step_reads_nothing(colour_pack: Pack, monkeypatch: Patch) -> None:
    mixed = replace(SMALL_FINE, augment=replace(SMALL_FINE.augment, mixup=0.4, cutmix=1.0))
    monkeypatch.setattr("reads.RECIPE", mixed)
    assert walk(colour_pack, "cpu", host_reads) == []


def test_a_loader_of_ones_own_loop_refuses_to_mix(coded_pack: Pack) -> None:
    import greyhound

    says = "mixup and cutmix give an image two labels, and a loader yields one; set both to 0"
    for augment in (MIXUP, CUTMIX):
        with pytest.raises(greyhound.UserError, match=says):
            greyhound.loader(coded_pack, augment=augment, resources=ONE_THREAD)
    greyhound.loader(coded_pack, augment=RICH, training=False, resources=ONE_THREAD).close()
    shown = greyhound.show(coded_pack, 2, 3, augment=MIXUP)
    assert np.array_equal(shown, greyhound.show(coded_pack, 2, 3, augment=replace(MIXUP, mixup=0.0)))
