"""Which categories are used, under which class names: ``roca+glomero=ore,banda``."""

from collections.abc import Sequence
from dataclasses import dataclass

from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """Ordered classes, each with the categories that make it up; no groups at all means every category as it is."""

    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for name, categories in self.groups:
            for category in categories:
                if owners.setdefault(category, name) != name:
                    raise UserError(f"--classes puts {category!r} into both {owners[category]!r} and {name!r}; a category has one class")

    @property
    def names(self) -> tuple[str, ...]:
        """The class names; a label is an index into them."""
        return tuple(name for name, _ in self.groups)

    def index(self, category_name: str) -> int | None:
        """The label of a category, or None where it is not used."""
        return next((i for i, (_, categories) in enumerate(self.groups) if category_name in categories), None)

    def resolve(self, known: Sequence[str]) -> "ClassMap":
        """This map for a data set with the ``known`` categories: all of them where no groups were given.

        Raises ``UserError`` listing the known ones where a category does not exist.
        """
        if not self.groups:
            return ClassMap(groups=tuple((name, (name,)) for name in dict.fromkeys(known)))
        unknown = [c for _, categories in self.groups for c in categories if c not in known]
        if unknown:
            listed = ", ".join(dict.fromkeys(known)) or "none"
            raise UserError(f"--classes names {', '.join(map(repr, unknown))}, which the data set does not have; known: {listed}")
        return self


def parse_classes(text: str) -> ClassMap:
    """Read ``category[+category...][=class]``, several separated by commas; an empty text stands for all categories.

    Without ``=class`` the class is named as written, so ``roca+glomero`` makes one class of that name. A class that is named twice
    collects the categories of both. Raises ``UserError`` where a part is empty or a category is in two classes.
    """
    merged: dict[str, list[str]] = {}
    for part in text.split(",") if text.strip() else ():
        left, equals, right = part.partition("=")
        categories = [c.strip() for c in left.split("+")]
        name = right.strip() if equals else "+".join(categories)
        if not all(categories) or not name or "=" in right:
            raise UserError(f"--classes has {part.strip()!r}, which is not of the form category+category=class")
        merged.setdefault(name, []).extend(c for c in categories if c not in merged[name])
    return ClassMap(groups=tuple((name, tuple(categories)) for name, categories in merged.items()))
