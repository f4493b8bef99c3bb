"""Attacks: searches for an input in the region that breaks the model."""

from boundgraph.attacks._common import AttackResult as AttackResult
from boundgraph.attacks.interval import interval as interval
from boundgraph.attacks.pgd import pgd as pgd
