"""What a servicer needs once its model is loaded, and an honest answer until then."""

from __future__ import annotations

from typing import Generic, TypeVar

from accord.errors import UnavailableError

T = TypeVar("T")


class Holder(Generic[T]):
    """Holds what is served from the moment that the model is loaded."""

    def __init__(self) -> None:
        self.value: T | None = None

    def get(self) -> T:
        """Returns what is served.

        Raises:
            UnavailableError: the model is not loaded yet.
        """
        if self.value is None:
            raise UnavailableError("the model is being loaded", retry_after_seconds=2.0)
        return self.value
