"""Verification: prove that a property holds on a region, or find an input that breaks it."""

from boundgraph.verification.certificate import Certificate as Certificate
from boundgraph.verification.certificate import certify as certify
from boundgraph.verification.certificate import check_certificate as check_certificate
from boundgraph.verification.checker import Checked as Checked
from boundgraph.verification.falsify import Attack as Attack
from boundgraph.verification.spec import All as All
from boundgraph.verification.spec import Any as Any
from boundgraph.verification.spec import Clauses as Clauses
from boundgraph.verification.spec import Constraint as Constraint
from boundgraph.verification.verdict import Proved as Proved
from boundgraph.verification.verdict import Refuted as Refuted
from boundgraph.verification.verdict import Unknown as Unknown
from boundgraph.verification.verdict import Verdict as Verdict
from boundgraph.verification.verify import Progress as Progress
from boundgraph.verification.verify import verify as verify
