"""Finds shortcuts: traits of the image files, such as size or format, that alone tell the classes (or splits) apart.

A model can learn these in place of the anatomy. Its accuracy is then too good, and it fails on files from elsewhere.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from tlray.data import traits
from tlray.errors import DataError
from tlray.trust.classification import balanced_accuracy_interval
from tlray.trust.groups import corrected_p_values, in_two_groups, permuted

ALL = "all traits"
"""Name of the test with `traits.TECHNICAL`: the traits of all families that do not depend on the anatomy."""

MAX_P_VALUE = 0.0005
"""Largest p-value, corrected for the number of tests, with which a shortcut is reported. It is strict, since every data
set is searched: no permutation may do as well. Of 40 sets of phantoms without a shortcut, one had a p-value of 0.002,
and one of 0.001 (`benchmarks/planted_shortcuts.py`, 2026-11-29)."""

MIN_MARGIN = 0.1
"""Smallest balanced accuracy above chance with which a shortcut is reported. Lesions themselves change the grey levels
a little, which is sure in many images, but of little use to a model."""

NUM_PERMUTATIONS = 1999
"""Number of permutations of the labels; the smallest p-value is 1 / (1 + this)."""

MAX_FOLDS = 5
MAX_IMAGES = 3000
"""Number of images above which a part of the groups is drawn at random, so that the search takes seconds."""

MIN_SAMPLED_GROUPS = 50
"""Minimum number of groups that are drawn of a class, if it has them, and there are not too many classes."""

NUM_TREES = 60
"""Number of trees of a forest. With 100, extremely randomized trees told the four classes of the public chest-CT images
(685, copies grouped) in 0.834, random forests in 0.813, gradient boosting in 0.809, in twice the time (2026-11-29)."""

NUM_LEAVES = 8
"""Maximum number of leaves of the tree that tries one trait alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraitTest:
    """The accuracy with which the traits of one family tell the classes, on images that the forest was not trained on.

    Attributes:
        family: A name from `traits.FAMILIES`, or `ALL`.
        told: The class that is told from the rest; None: all classes are told from one another.
        accuracy: Share of images that are told, in [0, 1].
        majority: Share of the images of the largest class (or of the rest, if it is larger), in [0, 1].
        balanced_accuracy: Mean sensitivity of the classes when all count as equally frequent, in [0, 1].
        balanced_accuracy_ci95: Its 95 % interval over groups, (low, high). It takes the forests of the folds as given:
            other training images would give others, which no interval of one cross-validation can count (Bengio and
            Grandvalet 2004, J. Mach. Learn. Res. 5:1089-1105).
        chance: Balanced accuracy by guessing: 1 / number of classes, and 0.5 for one against the rest.
        p_value: Probability of such a result, or a better one of any of the tests, if the traits do not depend on the
            class. It is corrected for the number of tests.
        trait: The trait of the family that alone tells most; None if this is no shortcut.
        trait_balanced_accuracy: Balanced accuracy of this trait alone.
    """

    family: str
    told: str | None
    accuracy: float
    majority: float
    balanced_accuracy: float
    balanced_accuracy_ci95: tuple[float, float]
    chance: float
    p_value: float
    trait: str | None = None
    trait_balanced_accuracy: float | None = None

    @property
    def margin(self) -> float:
        """Balanced accuracy above chance, as a share of the possible: 1 if all is told, 0 for chance."""
        return (self.balanced_accuracy - self.chance) / (1 - self.chance)

    @property
    def is_shortcut(self) -> bool:
        """True if the traits tell the classes surely and notably, and do not depend on the anatomy."""
        return (
            self.family not in traits.ANATOMICAL
            and self.p_value <= MAX_P_VALUE
            and self.balanced_accuracy >= self.chance + MIN_MARGIN
        )

    def describe(self, noun: str = "classes") -> str:
        """Returns a sentence for a report that says what is told by which traits, and how well.

        Args:
            noun: What is told from one another, in the plural.
        """
        told = f"the {noun}" if self.told is None else f"'{self.told}' from the rest"
        most = ""
        if self.trait is not None:
            most = f" '{self.trait}' alone: {self.trait_balanced_accuracy:.2f}."
        low, high = self.balanced_accuracy_ci95
        return (
            f"A forest that sees {self.family} only tells {told} in {self.accuracy:.0%} of the images (always the "
            f"largest: {self.majority:.0%}; balanced accuracy {self.balanced_accuracy:.2f}, 95 % interval {low:.2f} "
            f"to {high:.2f}, by guessing {self.chance:.2f}, p = {self.p_value:.4f}).{most}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcuts:
    """All tests of a set of images.

    Attributes:
        tests: Each family, and all traits, on all classes and on each class against the rest (unless there are two
            classes only). Empty unless there are two classes, each in two groups.
        num_images: Number of images that were used.
        num_groups: Number of their groups.
        num_folds: Number of folds; 0 if there were no tests.
        left_out: Classes with fewer than two groups, which cannot be tested; of many images, in the sample of them.
        held_out: The class that the forest of `together` predicts for each used image, by its row; it learned from the
            other folds. Empty if there were no tests.
    """

    tests: tuple[TraitTest, ...]
    num_images: int
    num_groups: int
    num_folds: int
    left_out: tuple[str, ...]
    held_out: Mapping[int, str] = field(default_factory=dict, repr=False)

    @property
    def together(self) -> TraitTest | None:
        """The test of `ALL` on all classes; None if there were no tests."""
        return next((test for test in self.tests if test.family == ALL and test.told is None), None)

    @property
    def findings(self) -> tuple[TraitTest, ...]:
        """The shortcuts to report, the strongest first: of each family, its best test."""
        best: dict[str, TraitTest] = {}
        for test in sorted(self.tests, key=lambda test: test.margin, reverse=True):
            if test.is_shortcut:
                best.setdefault(test.family, test)
        # All traits together are reported only if they tell what no family tells alone.
        return tuple(test for test in best.values() if test.family != ALL or len(best) == 1)


def find(table: pa.Table, classes: Sequence[str], groups: Sequence[str], *, seed: int = 0) -> Shortcuts:
    """Tells how well the traits of the files alone predict the class, by cross-validated forests.

    Images of a group are never in two folds. Whether a result is better than chance is found by exchanging the classes
    between groups, with the predictions as they are; the p-values are corrected for the number of tests by the largest
    statistic of each permutation [1]. With `classes` as the names of the splits, it tells how the splits differ.

    [1] Westfall, Young. Resampling-based multiple testing. Wiley 1993, section 2.5 (single-step maxT).

    Args:
        table: The traits of the images, from `traits.to_table`.
        classes: The class of each image.
        groups: The group of each image, such as its patient; copies of an image, and neighbouring slices, should be in
            one group, see `tlray.data.splits.dividing_groups`.
        seed: Seed of the folds, the forests, the permutations, and the sample if there are more than `MAX_IMAGES`.

    Raises:
        DataError: The lengths differ.
    """
    if not table.num_rows == len(classes) == len(groups):
        found = f"There are traits of {table.num_rows} images, {len(classes)} classes and {len(groups)} groups."
        raise DataError(f"{found} Give one of each for every image.")
    rng = np.random.default_rng(seed)
    names, labels = np.unique(np.array(classes, dtype=str), return_inverse=True)
    group_of = np.unique(np.array(groups, dtype=str), return_inverse=True)[1]
    rows = np.flatnonzero(in_two_groups(labels, group_of))
    rows = rows[_sample(labels[rows], group_of[rows], rng)]
    rows = rows[in_two_groups(labels[rows], group_of[rows])]  # in the sample, a class may have lost one of two
    left_out = tuple(str(name) for label, name in enumerate(names) if label not in labels[rows])
    names, labels = np.unique(np.array(classes, dtype=str)[rows], return_inverse=True)
    group_of = np.unique(group_of[rows], return_inverse=True)[1]
    num_folds = min([MAX_FOLDS, *(len(np.unique(group_of[labels == label])) for label in range(len(names)))])
    tests: tuple[TraitTest, ...] = ()
    held_out: dict[int, str] = {}
    if len(names) > 1:
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        folds = list(splitter.split(np.zeros((len(rows), 1)), labels, group_of))
        tests, predicted = _test(table.take(rows), labels, group_of, folds=folds, names=names.tolist(), rng=rng)
        held_out = dict(zip(rows.tolist(), names[predicted].tolist(), strict=True))
    counts = {"num_images": len(rows), "num_groups": len(np.unique(group_of)), "num_folds": num_folds if tests else 0}
    return Shortcuts(tests=tests, **counts, left_out=left_out, held_out=held_out)


def forest(seed: int = 0) -> ExtraTreesClassifier:
    """Returns an unfitted forest for traits."""
    return ExtraTreesClassifier(NUM_TREES, random_state=seed)


def _sample(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the rows to use: all, or about `MAX_IMAGES` in whole groups, from every class."""
    if len(labels) <= MAX_IMAGES:
        return np.arange(len(labels))
    numbers, first = np.unique(groups, return_index=True)
    kept, classes = [], np.unique(labels)
    least = min(MIN_SAMPLED_GROUPS, MAX_IMAGES // len(classes))
    for label in classes:
        of_label = rng.permutation(numbers[labels[first] == label])
        kept.append(of_label[: max(least, len(of_label) * MAX_IMAGES // len(labels))])
    return np.flatnonzero(np.isin(groups, np.concatenate(kept)))


def _test(
    table: pa.Table,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    folds: list[tuple[np.ndarray, np.ndarray]],
    names: list[str],
    rng: np.random.Generator,
) -> tuple[tuple[TraitTest, ...], np.ndarray]:
    """Returns the tests, and the class that the forest of all traits predicts for each image, int [images]."""
    num_classes = len(names)
    families = {**traits.FAMILIES, ALL: traits.TECHNICAL}
    told: list[int | None] = [None, *(range(num_classes) if num_classes > 2 else ())]
    predicted, accuracies, most_likely = [], [], []
    for family in families.values():
        probs_BK, shares_BK = _held_out_probs(forest(), traits.to_matrix(table, family), labels, folds, num_classes)
        predicted.append(_decide(probs_BK / shares_BK, told))
        accuracies.append(_accuracies(probs_BK, labels, told))
        most_likely.append(probs_BK.argmax(axis=1))
    guesses_BT = np.concatenate(predicted, axis=1)  # columns: the tests, by family
    told_of = told * len(families)
    found = _balanced_accuracies(guesses_BT, labels[None], told_of, num_classes)[0]
    shuffled = np.stack([permuted(labels, groups, rng) for _ in range(NUM_PERMUTATIONS)])
    p_values = corrected_p_values(found, _balanced_accuracies(guesses_BT, shuffled, told_of, num_classes))
    shares = np.bincount(labels, minlength=num_classes) / len(labels)
    intervals = [
        balanced_accuracy_interval(labels if one is None else (labels == one).astype(int), guesses, groups)
        for guesses, one in zip(guesses_BT.T, told_of, strict=True)
    ]
    tests = [
        TraitTest(
            family=list(families)[place // len(told)],
            told=None if one is None else names[one],
            accuracy=float(np.ravel(accuracies)[place]),
            majority=float(shares.max() if one is None else max(shares[one], 1 - shares[one])),
            balanced_accuracy=float(found[place]),
            balanced_accuracy_ci95=(intervals[place].low, intervals[place].high),
            chance=1 / num_classes if one is None else 0.5,
            p_value=float(p_values[place]),
        )
        for place, one in enumerate(told_of)
    ]
    named = tuple(_with_traits(tests, table, labels, folds=folds, told=told, num_classes=num_classes))
    return named, most_likely[-1]  # the last family is `ALL`


def _with_traits(
    tests: list[TraitTest],
    table: pa.Table,
    labels: np.ndarray,
    *,
    folds: list[tuple[np.ndarray, np.ndarray]],
    told: list[int | None],
    num_classes: int,
) -> Iterator[TraitTest]:
    """Yields the tests; those that are shortcuts with the trait that alone tells most."""
    guilty = {test.family for test in tests if test.is_shortcut}
    scores: dict[str, np.ndarray] = {}
    for family, names in traits.FAMILIES.items():
        for name in names if guilty & {family, ALL} and family not in traits.ANATOMICAL else ():
            tree = DecisionTreeClassifier(max_leaf_nodes=NUM_LEAVES, class_weight="balanced", random_state=0)
            probs_BK, _ = _held_out_probs(tree, traits.to_matrix(table, [name]), labels, folds, num_classes)
            # The tree weights the classes itself, so all are equally frequent here.
            guesses = _decide(probs_BK * num_classes, told)
            scores[name] = _balanced_accuracies(guesses, labels[None], told, num_classes)[0]
    for place, test in enumerate(tests):
        if test.is_shortcut:
            members = scores if test.family == ALL else traits.FAMILIES[test.family]
            value, best = max((float(scores[name][place % len(told)]), name) for name in members)
            yield dataclasses.replace(test, trait=best, trait_balanced_accuracy=value)
        else:
            yield test


def _held_out_probs(
    model: ExtraTreesClassifier | DecisionTreeClassifier,
    matrix: np.ndarray,
    labels: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each image's probabilities by the model of the other folds, and the class shares it was trained with."""
    probs_BK = np.zeros((len(labels), num_classes))
    shares_BK = np.ones_like(probs_BK)
    for train, test in folds:
        model.fit(matrix[train], labels[train])
        probs_BK[np.ix_(test, model.classes_)] = model.predict_proba(matrix[test])
        # A class that is not in the training part has no share, and no probability either.
        shares_BK[test] = np.maximum(np.bincount(labels[train], minlength=num_classes) / len(train), 1e-9)
    return probs_BK, shares_BK


def _decide(ratios_BK: np.ndarray, told: list[int | None]) -> np.ndarray:
    """Returns the class that each test predicts from probabilities divided by class shares, int [images, tests].

    For one class against the rest, it is 1 for this class and 0 for the rest.
    """
    columns = [ratios_BK.argmax(axis=1) if one is None else (ratios_BK[:, one] > 1).astype(int) for one in told]
    return np.stack(columns, axis=1)


def _accuracies(probs_BK: np.ndarray, labels: np.ndarray, told: list[int | None]) -> list[float]:
    def is_right(one: int | None) -> np.ndarray:
        return probs_BK.argmax(axis=1) == labels if one is None else (probs_BK[:, one] > 0.5) == (labels == one)

    return [float(np.mean(is_right(one))) for one in told]


def _balanced_accuracies(
    guesses_BT: np.ndarray, labels_PB: np.ndarray, told: list[int | None], num_classes: int
) -> np.ndarray:
    """Returns the balanced accuracy of each test with each labelling, float64 [labellings, tests].

    Args:
        guesses_BT: int [images, tests], see `_decide`.
        labels_PB: Class indices, int [labellings, images].
        told: The class that each test tells from the rest, or None; one for each test.
        num_classes: Number of classes.
    """
    num_labellings, num_images = labels_PB.shape
    is_multi = np.array([one is None for one in told])
    sums = np.zeros((num_labellings, len(told)))
    for label in range(num_classes):
        is_label = (labels_PB == label).astype(np.float32)
        counts = is_label.sum(axis=1, keepdims=True)
        of_this = np.array([one == label for one in told])
        # Of the tests that tell this class: how often it is told, and how often the rest is.
        right = np.where(is_multi, guesses_BT == label, guesses_BT == 1).astype(np.float32)
        sensitivity = is_label @ right / np.maximum(counts, 1)
        sums[:, is_multi] += sensitivity[:, is_multi] / num_classes
        rest = (1 - is_label) @ (guesses_BT[:, of_this] == 0).astype(np.float32) / np.maximum(num_images - counts, 1)
        sums[:, of_this] += (sensitivity[:, of_this] + rest) / 2
    return sums
