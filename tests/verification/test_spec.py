"""Properties and their normal form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from boundgraph.domains.specs import LinearSpec, Margin
from boundgraph.errors import NonFiniteError, SpecError
from boundgraph.verification import All, Any, Constraint
from boundgraph.verification.spec import Property, normalize
from boundgraph.verification.spec_file import load_spec, parse_spec

OUTPUT = torch.zeros(1, 3)


def constraints() -> st.SearchStrategy[Constraint]:
    numbers = st.integers(-2, 2).map(float)
    return st.builds(Constraint, st.lists(numbers, min_size=3, max_size=3), numbers)


def properties() -> st.SearchStrategy[Property]:
    def larger(inner: st.SearchStrategy[Property]) -> st.SearchStrategy[Property]:
        members = st.lists(inner, min_size=1, max_size=3)
        return st.one_of(members.map(lambda m: All(*m)), members.map(lambda m: Any(*m)))

    return st.recursive(constraints(), larger, max_leaves=6)


def holds(spec: Property, output: list[float]) -> bool:
    if isinstance(spec, Constraint):
        return sum(c * output[i] for i, c in spec.terms.items()) + spec.offset > 0
    return (all if isinstance(spec, All) else any)(holds(m, output) for m in spec.members)


@settings(max_examples=100)
@given(spec=properties(), output=st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=3))
def test_the_normal_form_means_the_same(spec: Property, output: list[float]) -> None:
    clauses = normalize(spec, OUTPUT)
    _, margin = clauses.worst(clauses.rows(torch.tensor([output])))
    assert (margin > 0) == holds(spec, output)


def test_margins_leave_the_label_out() -> None:
    clauses = normalize(Margin(3), OUTPUT, label=1)
    rows = clauses.rows(torch.tensor([[1.0, 5.0, 2.0]]))
    assert rows.tolist() == [4.0, 3.0]
    assert clauses.clause(0) == "f[1] - f[0] > 0"


def test_matrices_per_sample_pick_their_own() -> None:
    matrix = torch.tensor([[[1.0, 0, 0]], [[0, 2.0, 0]]])
    spec = LinearSpec(matrix, torch.tensor([[0.5], [-0.5]]))
    assert normalize(spec, OUTPUT, sample=1).row(0) == "2·f[1] - 0.5 > 0"


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (Constraint([1.0, 2.0]), "2 outputs"),
        (Constraint({7: 1.0}), "8 outputs"),
        (Margin(4), "needs an output"),
        (LinearSpec(torch.ones(1, 4)), "4 columns"),
        (LinearSpec(torch.ones(0, 3)), "no rows"),
    ],
)
def test_specs_that_do_not_fit_the_output(spec: Property, text: str) -> None:
    with pytest.raises(SpecError, match=text):
        normalize(spec, OUTPUT, label=0)


def test_malformed_constraints() -> None:
    with pytest.raises(SpecError, match="at least one"):
        All()
    with pytest.raises(SpecError, match="takes Constraint"):
        Any(Margin(3))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError):
        Constraint([float("nan"), 1.0])
    with pytest.raises(NonFiniteError, match="overflows"):
        normalize(Constraint({0: 1e300}), OUTPUT)
    wide = All(*(Constraint({0: 1.0}, i) for i in range(30)))
    with pytest.raises(SpecError, match="clauses"):
        normalize(Any(wide, wide, wide), OUTPUT)


def test_rows_survive_infinite_outputs_that_they_leave_out() -> None:
    clauses = normalize(All(Constraint({0: 1.0}), Constraint({0: 1.0, 1: -1.0})), OUTPUT)
    rows = clauses.rows(torch.tensor([[1.0, float("nan"), float("inf")]]))
    assert rows[0] == 1 and rows[1].isnan()
    assert clauses.worst(rows)[0] == 1


def test_specs_from_json(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    one, other = {"coefficients": [1, 0, -1], "offset": 2}, {"coefficients": {"1": -3}}
    path.write_text(json.dumps({"all": [one, {"any": [other, one]}]}))
    clauses = normalize(load_spec(path), OUTPUT)
    assert clauses.clauses == ((0,), (1, 2))
    assert [clauses.row(i) for i in range(2)] == ["f[0] - f[2] + 2 > 0", "-3·f[1] > 0"]


@pytest.mark.parametrize(
    "data",
    [[], {}, {"all": {}}, {"coefficients": "x"}, {"coefficients": [1], "x": 1}, {"any": []},
     {"coefficients": {"a": 1}}, {"all": [{"coefficients": [True]}]}],
)  # fmt: skip
def test_malformed_json_is_refused(data: object) -> None:
    with pytest.raises(SpecError):
        parse_spec(data)
