"""Decision diagrams over variables with few values: exact sets of assignments, in which equality is identity.

A diagram is an int: `FALSE`, `TRUE`, or a node that asks one variable and leads on by its value. Variables
are asked in the order of their numbers, equal nodes are shared, and a node whose branches are all equal is
left out, so that each set has one diagram. Time and memory go with the number of nodes, which a bound
holds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from dodona.oracle.errors import DodonaError

FALSE: Final = 0
TRUE: Final = 1

MAX_NODES: Final = 500_000
"""About ten seconds; the bundled books need some thousands."""
MAX_WORK: Final = 3_000_000
"""Branches that are looked at: some seconds. The bundled books need less than 100,000."""

MAX_VARIABLES: Final = 2_000


class TooEntangled(DodonaError, ValueError):
    """Rules whose conditions hang together so closely that the analysis would outgrow its bound."""


class Diagrams:
    """Makes and combines diagrams over variables 0, 1, …; `sizes[i]` is how many values variable i has."""

    def __init__(self, sizes: Sequence[int], *, max_nodes: int = MAX_NODES, max_work: int = MAX_WORK) -> None:
        self.sizes = tuple(sizes)
        if len(self.sizes) > MAX_VARIABLES:
            raise TooEntangled(
                f"the rules tell {len(self.sizes)} facts and entries of lists apart, which is more than "
                f"{MAX_VARIABLES}; split the book"
            )
        # Recursion goes as deep as there are variables. Calls are made in loops and comprehensions, since
        # map() and its like go through C, whose stack has a limit of its own.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1_000 + 4 * len(self.sizes)))
        self._max_nodes = max_nodes
        self._max_work = max_work
        self._work = 0
        """Branches that were looked at."""
        # The variable of the two ends comes after all others, so that the smaller of two is always the one
        # to ask.
        end = len(self.sizes)
        self._nodes: list[tuple[int, tuple[int, ...]]] = [(end, ()), (end, ())]
        self._unique: dict[tuple[int, tuple[int, ...]], int] = {}
        self._and: dict[tuple[int, int], int] = {}
        self._or: dict[tuple[int, int], int] = {}
        self._inside: dict[tuple[int, int], bool] = {}
        self._not: dict[int, int] = {FALSE: TRUE, TRUE: FALSE}

    def __len__(self) -> int:
        return len(self._nodes)

    def variable(self, node: int) -> int:
        """The variable that a node asks; the number of variables for `FALSE` and `TRUE`."""
        return self._nodes[node][0]

    def _make(self, variable: int, branches: tuple[int, ...]) -> int:
        self._work += len(branches)
        if self._work > self._max_work:
            raise TooEntangled(
                f"the analysis takes more than {self._max_work} steps: too many rules read the same facts "
                "together, or with too many values; split the book, or compare these facts in fewer rules"
            )
        first = branches[0]
        if branches.count(first) == len(branches):
            return first
        key = (variable, branches)
        found = self._unique.get(key)
        if found is None:
            if len(self._nodes) >= self._max_nodes:
                raise TooEntangled(
                    f"the analysis needs more than {self._max_nodes} nodes: too many rules read the same "
                    "facts together; split the book, or compare these facts in fewer rules"
                )
            found = len(self._nodes)
            self._nodes.append(key)
            self._unique[key] = found
        return found

    def values(self, variable: int, accepted: Iterable[int]) -> int:
        """The assignments in which a variable has one of the accepted values."""
        chosen = set(accepted)
        return self._make(
            variable, tuple(TRUE if v in chosen else FALSE for v in range(self.sizes[variable]))
        )

    def both(self, a: int, b: int) -> int:
        """Intersection."""
        if a == b or b == TRUE:
            return a
        if a == TRUE:
            return b
        if a == FALSE or b == FALSE:
            return FALSE
        key = (a, b) if a < b else (b, a)
        found = self._and.get(key)
        if found is None:
            variable, left, right = self._cofactors(a, b)
            found = self._make(variable, tuple([self.both(x, y) for x, y in zip(left, right, strict=True)]))
            self._and[key] = found
        return found

    def either(self, a: int, b: int) -> int:
        """Union."""
        if a == b or b == FALSE:
            return a
        if a == FALSE:
            return b
        if a == TRUE or b == TRUE:
            return TRUE
        key = (a, b) if a < b else (b, a)
        found = self._or.get(key)
        if found is None:
            variable, left, right = self._cofactors(a, b)
            found = self._make(variable, tuple([self.either(x, y) for x, y in zip(left, right, strict=True)]))
            self._or[key] = found
        return found

    def _cofactors(self, a: int, b: int) -> tuple[int, Sequence[int], Sequence[int]]:
        (va, left), (vb, right) = self._nodes[a], self._nodes[b]
        if va == vb:
            return va, left, right
        if va < vb:
            return va, left, (b,) * len(left)
        return vb, (a,) * len(right), right

    def negate(self, a: int) -> int:
        """Complement."""
        found = self._not.get(a)
        if found is None:
            variable, branches = self._nodes[a]
            found = self._make(variable, tuple([self.negate(branch) for branch in branches]))
            self._not[a] = found
            self._not[found] = a
        return found

    def less(self, a: int, b: int) -> int:
        """What is in `a` and not in `b`."""
        return self.both(a, self.negate(b))

    def inside(self, a: int, b: int) -> bool:
        """Whether all of `a` is in `b`; makes no nodes."""
        if a in (FALSE, b) or b == TRUE:
            return True
        if a == TRUE or b == FALSE:
            return False
        found = self._inside.get((a, b))
        if found is None:
            _, left, right = self._cofactors(a, b)
            found = True
            for x, y in zip(left, right, strict=True):
                if not self.inside(x, y):
                    found = False
                    break
            self._inside[a, b] = found
        return found

    def differ(self, a: int, b: int) -> int:
        """What is in one of the two only."""
        return self.either(self.less(a, b), self.less(b, a))

    def all_of(self, parts: Iterable[int]) -> int:
        """Intersection of several; `TRUE` for none."""
        found = TRUE
        # deepest variables first, so that each step adds on top of what is done
        for part in sorted(parts, key=self.variable, reverse=True):
            found = self.both(part, found)
        return found

    def any_of(self, parts: Iterable[int]) -> int:
        """Union of several; `FALSE` for none."""
        found = FALSE
        for part in sorted(parts, key=self.variable, reverse=True):
            found = self.either(part, found)
        return found

    def restrict(self, a: int, variable: int, value: int) -> int:
        """`a` where a variable has a value, as a set that doesn't ask that variable."""
        memo: dict[int, int] = {}

        def walk(node: int) -> int:
            asked, branches = self._nodes[node]
            if asked > variable:
                return node
            if asked == variable:
                return branches[value]
            found = memo.get(node)
            if found is None:
                found = memo[node] = self._make(asked, tuple([walk(branch) for branch in branches]))
            return found

        return walk(a)

    def contains(self, a: int, assignment: Sequence[int]) -> bool:
        """Whether an assignment (one value per variable) is in `a`."""
        while a > TRUE:
            variable, branches = self._nodes[a]
            a = branches[assignment[variable]]
        return a == TRUE

    def cheapest(self, a: int, costs: Sequence[Sequence[int]]) -> tuple[int, ...] | None:
        """The assignment in `a` of least total cost, and among equals the first; None where `a` is empty.

        costs: per variable and value; each variable has a value that costs nothing, which it takes where
        `a` doesn't ask it.
        """
        if a == FALSE:
            return None
        best: dict[int, tuple[int, int]] = {TRUE: (0, 0)}

        def cost(node: int) -> int:
            found = best.get(node)
            if found is None:
                variable, branches = self._nodes[node]
                prices = [
                    (costs[variable][value] + cost(branch), value)
                    for value, branch in enumerate(branches)
                    if branch != FALSE
                ]
                found = best[node] = min(prices)
            return found[0]

        cost(a)
        assignment = [row.index(0) for row in costs]
        while a != TRUE:
            variable, branches = self._nodes[a]
            assignment[variable] = best[a][1]
            a = branches[assignment[variable]]
        return tuple(assignment)
