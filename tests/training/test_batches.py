import numpy as np
import torch

from slmforge.training.batches import Example, epoch_order, micro_batches, pack, step_rows

CPU = torch.device("cpu")


def example(ids: list[int], labels: list[int]) -> Example:
    return Example(np.array(ids), np.array([place in labels for place in range(len(ids))]))


def test_each_epoch_meets_every_row_once_in_its_own_order() -> None:
    first = [row for step in range(4) for row in step_rows(10, 3, seed=5, step=step)]
    second = [row for step in range(4, 8) for row in step_rows(10, 3, seed=5, step=step)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    order = epoch_order(50, 7, 3).tolist()
    epoch_order(50, 8, 3)
    assert epoch_order(50, 7, 3).tolist() == order
    assert epoch_order(50, 8, 3).tolist() != order


def test_micro_batches_keep_to_the_budget_and_lose_nothing() -> None:
    lengths = [9, 2, 5, 30, 7, 3, 3]
    rows = [example([number] * length, [1]) for number, length in enumerate(lengths)]
    batches = list(micro_batches(rows, max_tokens=12, device=CPU))
    sizes = [batch.ids_1T.shape[1] for batch in batches]
    assert sum(sizes) == sum(lengths)
    assert [size for size in sizes if size > 12] == [30]


def test_unpacked_every_row_stands_alone() -> None:
    rows = [example([1, 2], [1]), example([3, 4, 5], [1])]
    batches = list(micro_batches(rows, max_tokens=100, device=CPU, packed=False))
    assert [batch.ids_1T.tolist() for batch in batches] == [[[3, 4, 5]], [[1, 2]]]


def test_a_label_is_predicted_from_the_token_before_it_and_never_across_documents() -> None:
    batch = pack([example([10, 11, 12], [0, 2]), example([20, 21], [0, 1])], CPU)
    assert batch.positions_1T.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.predicting_N.tolist() == [1, 3]
    assert batch.labels_N.tolist() == [12, 21]


def test_the_count_of_labels_leaves_out_a_first_token() -> None:
    assert example([1, 2, 3], [0, 1, 2]).labels == 2
