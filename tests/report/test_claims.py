"""Verdicts on the shipped records of cifar_small, against scipy's paired test."""

from pathlib import Path

import pytest
from scipy import stats

from bench.core.errors import UserError
from bench.grid.claims import statements
from bench.grid.load import load_grid
from bench.report.claims import judged
from bench.report.collect import Collected, collect
from bench.report.costs import ALONE, FLOP, IMAGES, PRIOR, STEPS, TARGETS
from bench.report.document import report_document
from bench.report.facts import linear
from bench.report.labels import families
from bench.report.render.markdown import escape_markdown, markdown_document
from bench.report.sections.verdicts import certainty, claim_sentence, verdict_table
from bench.store.record import Finished, read_records, write_record

RECORDS = Path(__file__).parent.parent.parent / "results" / "cifar_small"


def found(*claims: str) -> Collected:
    return collect(load_grid("cifar_small", settings=[f"claims=[{', '.join(claims)}]"]), RECORDS)


def accuracies(of: Collected, arm: str, budget: float) -> list[float]:
    result = next(r for r in of.results if (r.label, r.budget) == (arm, budget))
    return [linear(record) for record in result.done]


@pytest.mark.parametrize("margin", [0.0, 0.01, 0.03])
@pytest.mark.parametrize("arm", ["CF10-R20", "Rand.", "byol"])
def test_the_accuracy_is_judged_as_by_a_paired_test(arm: str, margin: float) -> None:
    of = found(f"{{name: c, arm: {arm}, budget: 0.5, baseline: byol, share: 0.54, margin: {margin}}}")
    ours, theirs = accuracies(of, arm, 0.5), accuracies(of, "byol", 1.0)
    above, below = (
        stats.ttest_rel([value + margin for value in ours], theirs, alternative=side).pvalue < 0.05
        for side in ("greater", "less")
    )
    expected = "reproduced" if above else "not reproduced" if below else "inconclusive"
    judgements = [
        one
        for one in judged(of)[0]
        if one.ledger != PRIOR or arm != "CF10-R20"  # nobody knows what that prior's training took
    ]
    assert {one.verdict for one in judgements if one.currency.exact} == {expected}
    for one in judgements:
        assert one.n == 3
        assert one.difference is not None
        assert one.difference[0] == pytest.approx(sum(ours) / 3 - sum(theirs) / 3)
        assert (one.seeds is not None and one.seeds > 3) or one.verdict != "inconclusive"


def test_several_claims_are_judged_together() -> None:
    arms, margins = ("CF10-R20", "Rand.", "byol"), (-0.03, 0.01, 0.03, 0.05)
    wanted = [(arm, margin) for arm in arms for margin in margins]
    of = found(*(f"{{name: c, arm: {arm}, budget: 0.5, baseline: byol, margin: {margin}}}" for arm, margin in wanted))
    theirs = accuracies(of, "byol", 1.0)
    expected = ["inconclusive"] * len(wanted)
    for side, verdict in (("greater", "reproduced"), ("less", "not reproduced")):
        p = [
            stats.ttest_rel([value + margin for value in accuracies(of, arm, 0.5)], theirs, alternative=side).pvalue
            for arm, margin in wanted
        ]
        for rank, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
            if p[index] > 0.05 / (len(p) - rank):
                break
            expected[index] = verdict
    claims = judged(of)
    assert [{one.verdict for one in judgements} for judgements in claims] == [{verdict} for verdict in expected]
    for judgements, (arm, margin) in zip(claims, wanted, strict=True):
        (single,) = judged(found(f"{{name: c, arm: {arm}, budget: 0.5, baseline: byol, margin: {margin}}}"))
        assert {one.alone for one in judgements} == {one.verdict for one in single}
    text = certainty(claims)
    assert f"The {len(wanted)} claims of this grid are judged together" in text
    assert "wrongly called reproduced is at most 5%" in text


def test_a_cost_above_the_share_is_not_what_was_claimed() -> None:
    of = found("{name: c, arm: CF10-R20, budget: 0.5, baseline: byol, share: 0.37}")
    verdicts = {(j.currency, j.ledger): j for j in judged(of)[0]}
    alone, together = (verdicts[FLOP, ledger] for ledger in (ALONE, TARGETS))
    assert alone.ratio is not None
    assert together.ratio is not None
    # 19 of 39 steps an epoch, each at 3/4 of the work but for the heads: 36 %; the targets are more than 1 % of BYOL*.
    assert alone.ratio[0] < 0.37 < together.ratio[0]
    assert (alone.verdict, together.verdict) == ("reproduced", "not reproduced")
    assert verdicts[STEPS, ALONE].verdict == "not reproduced"
    assert verdicts[STEPS, ALONE].ratio == pytest.approx((19 / 39,) * 3)


def test_half_the_cost_on_real_images_and_where_it_breaks() -> None:
    of = collect(load_grid("cifar_small"), RECORDS)
    half = {(one.ledger, one.currency): one for each in judged(of) for one in each if one.claim.name == "half the cost"}
    counted = [(ALONE, STEPS), (ALONE, IMAGES), (ALONE, FLOP), (TARGETS, STEPS), (TARGETS, FLOP)]
    assert {half[way].verdict for way in counted} == {"reproduced"}
    # The prior looks at each of the 5,000 images once; byol at full budget takes 39 batches of 128 in 20 epochs.
    images = half[TARGETS, IMAGES]
    assert images.ratio == pytest.approx(((19 * 128 * 20 + 5000) / (39 * 128 * 20),) * 3)
    assert images.verdict == "not reproduced"
    assert {half[PRIOR, currency].verdict for currency in (STEPS, IMAGES, FLOP)} == {"inconclusive"}, "nobody knows"


def test_shuffled_targets_do_not_reproduce_the_claim() -> None:
    of = collect(load_grid("cifar_small"), RECORDS)
    shuffled = [one for each in judged(of) for one in each if one.claim.name.endswith("shuffled targets")]
    assert {one.alone for one in shuffled if one.currency.exact} == {"not reproduced"}
    assert "reproduced" not in {one.verdict for one in shuffled}


def test_a_standard_error_needs_the_number_of_test_images_on_both_sides(tmp_path: Path) -> None:
    claims = "claims=[{name: c, arm: CF10-R20, budget: 0.5, baseline: byol}]"
    for record in read_records(RECORDS)[0]:
        if isinstance(record, Finished) and record.cell.arm in {"byol", "CF10-R20"}:
            unknown = {"test_images": None} if record.cell.arm == "byol" else {}
            write_record(record.model_copy(update=unknown), tmp_path)
    [whole] = judged(found("{name: c, arm: CF10-R20, budget: 0.5, baseline: byol}"))
    [part] = judged(collect(load_grid("cifar_small", settings=[claims]), tmp_path))
    share = [sum(accuracies(found(), arm, budget)) / 3 for arm, budget in (("CF10-R20", 0.5), ("byol", 1.0))]
    expected = (sum(each * (1 - each) for each in share) / 10_000) ** 0.5
    assert [one.error for one in whole] == [pytest.approx(expected)] * len(whole)
    assert {one.error for one in part} == {None}


@pytest.mark.parametrize(
    ("margin", "words"),
    [
        (0.01, "is at most 1 point of linear accuracy below byol"),
        (0.0, "is above byol"),
        (-0.077, "is at least 7.7 points of linear accuracy above byol"),
    ],
)
def test_a_margin_in_words(margin: float, words: str) -> None:
    of = found(f"{{name: c, arm: CF10-R20, budget: 0.5, margin: {margin}}}")
    assert f"CF10-R20 at 50% of the steps {words} at 100%. Each bound" in claim_sentence(statements(of.grid)[0])


def test_a_claim_about_accuracy_alone_says_nothing_about_cost() -> None:
    of = found("{name: c, arm: CF10-R20, budget: 0.5, baseline_budget: same, margin: 0}")
    judgements = judged(of)[0]
    assert {one.ledger for one in judgements} == {ALONE}
    assert {one.verdict for one in judgements} == {"reproduced"}


def test_a_claim_on_every_arm_leaves_out_the_shuffled_control() -> None:
    of = found("{name: c, arm: '*', budget: '*', baseline_budget: same, margin: 0}")
    said = {(one.arm, one.budget, one.baseline, one.baseline_budget) for one in statements(of.grid)}
    recipes = (("Rand.", "CF10-R20"), "byol"), (("Rand., tuned", "CF10-R20, tuned"), "BYOL, tuned")
    expected = {(arm, budget, plain, budget) for arms, plain in recipes for arm in arms for budget in (0.2, 0.5)}
    assert said == expected | {("CF10-R20, then BYOL", 0.5, "byol", 0.5)}


def test_the_report_begins_with_the_verdicts() -> None:
    of = collect(load_grid("cifar_small"), RECORDS)
    text = markdown_document(report_document(of))
    assert escape_markdown(certainty(judged(of)), None) in text
    assert text.index("## Verdicts") < text.index("## Linear accuracy")
    assert "CF10-R20 at 50% of the steps is at most 1 point of linear accuracy below byol" in text
    assert len(verdict_table(judged(of)).rows) == sum(1 if one.share is None else 3 for one in of.grid.claims)


def test_a_control_at_the_same_flop_is_no_baseline_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "trial.yaml").write_text(
        "{backbone: resnet_small, datasets: [digits], seeds: [0], arms: ["
        "{name: matched, method: byol, flops_of: random}, byol, {name: random, method: byol, rela: {prior: rand}}],"
        ' claims: [{name: c, arm: "*", budget: "*"}]}'
    )
    grid = load_grid(str(tmp_path / "trial.yaml"))
    assert [(one.arm, one.baseline) for one in statements(grid)] == [("random", "byol")]
    (family,) = families(grid)
    assert family.plain == grid.arms[1]
    assert family.others == (grid.arms[0], grid.arms[2])


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ("{name: c, arm: CF10, budget: 0.5, baseline: byol, share: 0.5}", "claims[0].arm: 'CF10' is no arm"),
        ("{name: c, arm: Rand., budget: 0.5, baseline: bjol, share: 0.5}", "did you mean 'byol'"),
        ("{name: c, arm: Rand., budget: 0.3, baseline: byol, share: 0.5}", "'Rand.' has no budget 0.3"),
        ("{name: c, arm: Rand., budget: 0.5, share: 0}", "claims[0].share"),
        ("{name: c, arm: Rand., budget: 0.5, datasets: [cifar100]}", "'cifar100' is no dataset of the grid"),
        ("{name: c, arm: Rand., budget: 0.5, baseline_budget: some}", "claims[0].baseline_budget"),
    ],
)
def test_a_claim_that_cannot_be(claim: str, why: str) -> None:
    with pytest.raises(UserError) as caught:
        found(claim)
    assert why in str(caught.value)
