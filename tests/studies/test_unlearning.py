"""The study of unlearning: what counts as a row that should not have changed, or should have."""

from tests.models.remember.ledger.test_ledger import by_hand
from triptych.studies.unlearning import rows_not_undone, rows_of_others


def test_rows_by_hand():
    model, ledger = by_hand()  # fact0 writes rows 0, 1, 2; the other facts 1, 2, 3 and 2, 4
    before = [table.weight.detach().clone() for table in model.tables]
    assert rows_of_others(before, before, ledger, "fact0") == 0
    assert rows_not_undone(before, ledger, "fact0") == 1  # row 0 still holds it
    ledger.revert_fact(model, "fact0")
    after = [table.weight.detach().clone() for table in model.tables]
    assert rows_of_others(before, after, ledger, "fact0") == 0
    assert rows_not_undone(after, ledger, "fact0") == 0
    after[0][[2, 3, 4]] += 1.0
    assert rows_of_others(before, after, ledger, "fact0") == 2  # row 2 is fact0's as well
    after[0][0] = -0.0  # zero, but not to the bit
    assert rows_not_undone(after, ledger, "fact0") == 1
