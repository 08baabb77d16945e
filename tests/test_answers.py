"""What is said of the answers to the images of a split, against SciPy and by hand."""

import csv
import io

import pytest
import torch
from PIL import Image
from scipy.stats import binomtest

from slimkit.core.measure.answers import Answers, binomial_p, compare_answers, wilson
from slimkit.core.scoring.details import draw_confusion, in_blocks


@pytest.mark.parametrize(("right", "images"), [(0, 5), (5, 5), (1, 3), (665, 1000), (3319, 5000)])
def test_wilson_is_scipys(right: int, images: int) -> None:
    theirs = binomtest(right, images).proportion_ci(method="wilson")
    assert wilson(right, images) == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-4)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 6), (7, 7), (130, 171), (4, 20)])
def test_mcnemar_is_the_binomial_test_of_the_images_that_one_alone_has_right(lost: int, won: int) -> None:
    wanted = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert binomial_p(min(lost, won), lost + won) == pytest.approx(wanted)
    labels = torch.zeros(lost + won + 9, dtype=torch.int64)
    model, baseline = labels.clone(), labels.clone()
    model[:lost] = 1
    baseline[lost : lost + won] = 1
    model[-3:] = baseline[-3:] = 2  # both are wrong there
    sure = torch.ones(len(labels))
    difference = compare_answers(Answers(labels, model, sure), Answers(labels, baseline, sure))
    assert (difference.lost, difference.won, difference.p_value) == (lost, won, pytest.approx(wanted))


def test_the_calibration_error_by_hand() -> None:
    """Two of four right at confidence 0.9: 40 points off. One of one right at 0.5: 50 off. Weighted: 42."""
    answers = Answers(
        labels=torch.tensor([0, 0, 0, 0, 1]),
        given=torch.tensor([0, 0, 1, 1, 1]),
        confidence=torch.tensor([0.9, 0.9, 0.9, 0.9, 0.5]),
    )
    assert answers.calibration_error() == pytest.approx(42)


def test_the_tables_by_hand() -> None:
    answers = Answers(
        labels=torch.tensor([0, 0, 0, 2, 2]), given=torch.tensor([0, 1, 1, 2, -1]), confidence=torch.ones(5)
    )
    assert answers.confusion(3).tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 1]]
    rows = list(csv.DictReader(io.StringIO(answers.per_class_csv(["a", "b, c", "d"]))))
    assert [(row["class"], row["images"], row["right"], row["accuracy_%"]) for row in rows] == [
        ("a", "3", "1", "33.33"),
        ("d", "2", "1", "50.00"),
    ]
    assert (rows[0]["most_mistaken_for"], rows[0]["times"]) == ("b, c", "2")
    assert rows[1]["most_mistaken_for"] == ""
    assert (answers.unanswered, [row["no_answer"] for row in rows]) == (1, ["0", "1"])
    table = list(csv.reader(io.StringIO(answers.confusion_csv(["a", "b, c", "d"]))))
    assert table[0] == ["", "a", "b, c", "d"]
    assert table[1] == ["a", "1", "2", "0"]


def test_many_classes_share_squares() -> None:
    counts = torch.tensor([[4, 1, 0], [0, 2, 3], [1, 0, 5]])
    assert in_blocks(counts, 1).tolist() == counts.tolist()
    assert in_blocks(counts, 2).tolist() == [[7, 3], [1, 5]]


@pytest.mark.parametrize("classes", [1, 2, 260])
def test_the_confusion_is_drawn_of_any_number_of_classes(classes: int) -> None:
    picture = draw_confusion(torch.eye(classes, dtype=torch.int64), [str(i) for i in range(classes)])
    with Image.open(io.BytesIO(picture)) as shown:
        assert shown.size[0] < 1500
